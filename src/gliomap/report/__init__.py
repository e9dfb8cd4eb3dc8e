"""Rows and arrays become self-contained HTML pages; nothing here knows a verb."""
