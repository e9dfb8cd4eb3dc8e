"""Studies on disk, synthetic studies, and what training reads from them."""
