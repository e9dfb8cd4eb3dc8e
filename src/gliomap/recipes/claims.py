"""CLAIMS: what the five papers say that their tables show, as pairs of rows that can be compared study by study.

In our words. A claim is listed where the paper's text makes it or the table is there to make it; what its own numbers do not
bear out is listed all the same, and says so. A claim about rows of which the paper's text has no number is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from gliomap.recipes.definitions import definitions
from gliomap.recipes.published import Published, published
from gliomap.recipes.tables import SCORED, address

_REGIONS = ("ET", "TC", "WT")


@dataclass(frozen=True)
class Claim:
    """One paper's claim that one row of a table is better than another.

    ``better`` and ``worse`` are recipes; or a row as printed, where gliomap has no recipe for it. ``text`` says what is claimed,
    without region and metric, and ``note`` what speaks against judging by it.
    """

    paper: str
    table: str
    text: str
    better: str
    worse: str
    region: str
    metric: str
    note: str = ""

    @property
    def address(self) -> str:
        """Of the table that it is about."""
        return address(self.paper, self.table)

    @property
    def numbers(self) -> tuple[Published, Published]:
        """What is printed of the better and of the worse row."""
        return self._number(self.better), self._number(self.worse)

    @property
    def higher_is_better(self) -> bool:
        """Whether more of the metric is better."""
        number = self.numbers[0]
        return number.how != "counted" and definitions(number)[0].higher_is_better

    @property
    def published_gain(self) -> float:
        """By how much the better row is better in print, in the unit of the better row: negative where it is worse."""
        better, worse = self.numbers
        if better.unit != worse.unit:
            worse = replace(worse, value=_as_fraction(worse) * (100 if better.unit == "%" else 1))
        return (better.value - worse.value) * (1 if self.higher_is_better else -1)

    @property
    def testable(self) -> bool:
        """Whether gliomap can measure both sides."""
        return all(number.recipe and number.how in (*SCORED, "counted") for number in self.numbers)

    @property
    def doubt(self) -> str:
        """The note, and whether the paper's own numbers say the opposite."""
        gain = self.published_gain
        own = (
            ""
            if gain > 0
            else "the paper prints equal numbers"
            if gain == 0
            else "the paper's own numbers say the opposite"
        )
        return "; ".join(text for text in (self.note, own) if text)

    def _number(self, name: str) -> Published:
        """From the claim's own table, or else from another of the paper's."""
        found = [n for n in _PUBLISHED if n.paper == self.paper and name in (n.recipe, n.row)]
        found = [n for n in found if (n.region, n.metric) == (self.region, self.metric)]
        return min(found, key=lambda n: n.table != self.table)


_PUBLISHED = published()
_SERVER = "the paper scored both on the same 125 studies of a server, whose labels nobody has"
_ELSEWHERE: dict[str, str] = {"quoted": "published elsewhere, on other studies", "official server": _SERVER}


def _claims(
    table: str, metrics: Sequence[str], pairs: Sequence[tuple[str, str, str, str]], regions: Sequence[str] = _REGIONS
) -> list[Claim]:
    """Every pair (text, better, worse, note) in every region and metric."""
    paper, _, name = table.partition(" ")
    return [
        Claim(paper, name, text, better, worse, region, metric, note)
        for (text, better, worse, note), metric, region in product(pairs, metrics, regions)
    ]


def _over_others(table: str, better: str, what: str) -> list[Claim]:
    """That a row has a higher Dice than any other work of a table: one claim a region, against the best of all but "ours"."""
    paper, _, name = table.partition(" ")
    found = []
    for region in _REGIONS:
        rows = [n for n in _PUBLISHED if (n.paper, n.table, n.region, n.metric) == (paper, name, region, "dice")]
        best = max((n for n in rows if "ours" not in n.row.casefold()), key=_as_fraction)
        text = f"{what} beats {best.row}, the best of the other works"
        found.append(Claim(paper, name, text, better, best.recipe or best.row, region, "dice", _ELSEWHERE[best.how]))
    return found


def _as_fraction(number: Published) -> float:
    return number.value / 100 if number.unit == "%" else number.value


_000 = [
    *_claims(
        "000 2",
        ["dice"],
        [
            ("dual fusion beats late fusion", "dual_fusion", "dual_fusion_late", ""),
            ("dual fusion beats early fusion", "dual_fusion", "dual_fusion_early", ""),
            ("early fusion beats late fusion", "dual_fusion_early", "dual_fusion_late", ""),
            ("dual fusion beats DynUNet alone", "dual_fusion", "dual_fusion_dynunet", ""),
            ("dual fusion beats SegResNet alone", "dual_fusion", "dual_fusion_segresnet", ""),
        ],
    ),
    *_over_others("000 3", "dual_fusion", "dual fusion"),
]

_DEEPER = "the rows with residual blocks are twice as deep; druwas_deep_baseline is the like-for-like baseline"
_LONGER = "the Swish row trains 60 epochs more than all others"

_001 = [
    *_claims("001 1", ["dice", "hd95"], [("Swish after ReLU beats ReLU", "druwas_swish", "druwas", _LONGER)]),
    *_over_others("001 1", "druwas_swish", "the full model"),
    *_over_others("001 2", "druwas_swish", "the full model"),
    *_over_others("001 3", "druwas_swish", "the full model"),
    *_claims(
        "001 4",
        ["dice", "hd95"],
        [
            ("+ attention gate beats the baseline", "druwas_ag", "druwas_baseline", ""),
            ("+ spatial attention beats the baseline", "druwas_sa", "druwas_baseline", ""),
            ("+ both attentions beat the baseline", "druwas_sa_ag", "druwas_baseline", ""),
            ("+ residual blocks beat the baseline", "druwas_resnet", "druwas_baseline", _DEEPER),
            ("the full model beats both attentions alone", "druwas", "druwas_sa_ag", _DEEPER),
            ("the full model beats residual blocks alone", "druwas", "druwas_resnet", ""),
            ("Swish after ReLU beats ReLU", "druwas_swish", "druwas", _LONGER),
        ],
    ),
]

_ABLATION = [
    ("+ Intra beats the baseline", "cga_unet_intra", "cga_unet_baseline", ""),
    ("+ Inter beats the baseline", "cga_unet_inter", "cga_unet_baseline", ""),
    ("+ Intra + Inter beats the baseline", "cga_unet", "cga_unet_baseline", ""),
    ("+ Intra + Inter beats + Intra", "cga_unet", "cga_unet_intra", ""),
    ("+ Intra + Inter beats + Inter", "cga_unet", "cga_unet_inter", ""),
]
_002 = [
    *_claims(
        "002 2",
        ["dice", "hd95"],
        [
            ("CGA U-Net beats 3D U-Net", "cga_unet", "cga_unet_unet3d", _SERVER),
            ("CGA U-Net beats V-Net", "cga_unet", "cga_unet_vnet", _SERVER),
            ("CGA U-Net beats Attention U-Net", "cga_unet", "cga_unet_attention_unet", _SERVER),
        ],
    ),
    *_claims("002 2", ["dice", "hd95"], [("CGA U-Net beats nnU-Net", "cga_unet", "cga_unet_dynunet", _SERVER)], ["ET"]),
    *_over_others("002 2", "cga_unet", "CGA U-Net"),
    *_claims(
        "002 3",
        ["parameters_m", "gflops"],
        [
            ("the supervised module costs less than self-attention", "cga_unet", "cga_unet_self_attention", ""),
            ("the supervised module costs less than a context prior", "cga_unet", "cga_unet_context_prior", ""),
        ],
        [""],
    ),
    *_claims("002 4", ["dice", "hd100"], _ABLATION),
    *_claims(
        "002 4",
        ["dice", "hd100"],
        [("reversing the sign of the inter-class loss harms", "cga_unet_baseline", "cga_unet_minus_inter", "")],
    ),
    *_claims(
        "002 4",
        ["dice"],
        [
            ("updating ET alone does more than NCR alone", "cga_unet_intra_et", "cga_unet_intra_ncr", ""),
            ("updating ET alone does more than ED alone", "cga_unet_intra_et", "cga_unet_intra_ed", ""),
        ],
        ["ET"],
    ),
    *_claims("002 5", ["dice_sd", "hd100_sd"], _ABLATION[:3]),
    *_claims(
        "002 section 4.3",
        ["parameters_m", "gflops"],
        [("CGA U-Net costs less than nnU-Net", "cga_unet", "cga_unet_dynunet", "")],
        [""],
    ),
]


def _aspp_claims() -> list[Claim]:
    found = []
    for modality, printed in (("t1c", "T1C"), ("flair", "FLAIR"), ("t2", "T2W")):
        pair = (
            f"ASPP beats attention alone, {printed}",
            f"aspp_attention_unet_{modality}",
            f"attention_unet2d_{modality}",
            "",
        )
        found += _claims("003 1", ["dice", "miou", "accuracy"], [pair], [""])
    lost = "the text has no other number of U-Net"
    pairs = [
        ("attention beats U-Net, T2W", "attention_unet2d_t2", "unet2d_t2", lost),
        ("ASPP beats U-Net, T2W", "aspp_attention_unet_t2", "unet2d_t2", lost),
    ]
    return found + _claims("003 1", ["miou"], pairs, [""])


_004 = [
    *_claims(
        "004 section 4.2",
        ["dice", "hd95"],
        [
            ("the method beats ResNet-UNet", "attention_resunet", "attention_resunet_baseline", ""),
            ("the method beats 3-D U-Net", "attention_resunet", "attention_resunet_unet3d", ""),
        ],
    ),
    *_claims(
        "004 section 4.2",
        ["dice", "hd95"],
        [("the method beats DeepMedic", "attention_resunet", "DeepMedic", "gliomap has no DeepMedic")],
    ),
    *_claims(
        "004 section 4.3",
        ["dice"],
        [
            ("+ attention beats the baseline", "attention_resunet_attention", "attention_resunet_baseline", ""),
            ("+ fusion beats the baseline", "attention_resunet_fusion", "attention_resunet_baseline", ""),
            ("both beat the baseline", "attention_resunet", "attention_resunet_baseline", ""),
            ("both beat attention alone", "attention_resunet", "attention_resunet_attention", ""),
            ("both beat fusion alone", "attention_resunet", "attention_resunet_fusion", ""),
        ],
        ["WT"],
    ),
    *_claims(
        "004 commentary 5",
        ["dice"],
        [("both beat attention alone", "attention_resunet", "attention_resunet_attention", "")],
        ["WT"],
    ),
]

CLAIMS: tuple[Claim, ...] = (*_000, *_001, *_002, *_aspp_claims(), *_004)


def claims_of(wanted: str) -> tuple[Claim, ...]:
    """The claims about the table of that address."""
    return tuple(claim for claim in CLAIMS if claim.address == wanted)
