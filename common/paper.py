"""The paper's numbers, the field's numbers, and the four architectures of Table 1, as data.

Numbers are strings, as printed. None: not legible in our copy (row P3 of Table 3b; all cells of Figure 1).
"""

# {imbalance ratio: {row: accuracy in %}}, here and below. A1 and A2 are on CIFAR-10, A3 and A4 on CIFAR-100.
TABLE_1 = {
    1: {"A1": "94.6", "A2": "94.7", "A3": "76.1", "A4": "75.0"},
    100: {"A1": "77.3", "A2": "74.1", "A3": "39.4", "A4": "43.0"},
}

# CIFAR-10 -> CIFAR-100 in Table 3a, and back in Table 3b.
TABLE_3A = {
    50: {"P0": "45.80", "P1": "45.06", "P2": "44.86", "P3": "45.93"},
    100: {"P0": "40.83", "P1": "41.93", "P2": "41.86", "P3": "41.53"},
    200: {"P0": "36.30", "P1": "36.76", "P2": "36.70", "P3": "37.03"},
    400: {"P0": "32.80", "P1": "33.70", "P2": "33.46", "P3": "33.40"},
}
TABLE_3B = {
    100: {"P0": "75.96", "P1": "75.93", "P2": "75.86", "P3": None},
    200: {"P0": "68.96", "P1": "69.70", "P2": "69.26", "P3": None},
    400: {"P0": "63.26", "P1": "63.80", "P2": "63.70", "P3": None},
    800: {"P0": "56.90", "P1": "58.23", "P2": "58.03", "P3": None},
}

# "P2, 50/200": P2 with a backbone that is frozen after 50 of the 200 epochs. The rest are the runs of Table 3a.
TABLE_4 = {
    100: {**TABLE_3A[100], "P2, 50/200": "40.06", "P2, 100/200": "41.43", "P2, 150/200": "41.40"},
    200: {**TABLE_3A[200], "P2, 50/200": "35.46", "P2, 100/200": "37.26", "P2, 150/200": "36.63"},
    400: {**TABLE_3A[400], "P2, 50/200": "32.56", "P2, 100/200": "33.00", "P2, 150/200": "32.86"},
}

# The loss of a super-net that is trained on the target (P3).
TABLE_5 = {
    100: {"CE": "41.36", "CE-DRW": "41.53"},
    200: {"CE": "37.5", "CE-DRW": "37.0"},
    400: {"CE": "33.9", "CE-DRW": "33.4"},
}

GROUPS = ("many", "medium", "few", "all")  # the columns of Table 6
TABLE_6 = {
    100: {
        "P0": ("64.1", "40.4", "14.1", "40.8"),
        "P1": ("65.2", "41.6", "15.0", "41.9"),
        "P2": ("65.2", "40.9", "15.7", "41.8"),
        "P3": ("65.0", "41.5", "14.1", "41.5"),
    },
    400: {
        "P0": ("65.0", "39.1", "10.1", "32.8"),
        "P1": ("66.3", "41.0", "10.2", "33.7"),
        "P2": ("66.2", "40.3", "10.2", "33.4"),
        "P3": ("66.2", "39.5", "10.5", "33.4"),
    },
}

# Seconds on a V100 at 100x. The paper prints P1's, and calls P2 and P3 2 and 5 times as expensive.
FIGURE_2 = {100: {"P1": "2000", "P2": "4000", "P3": "10000"}}

# Top-1 accuracy of ResNet-32 at 100x. Cao: Cao et al. 2019 (LDAM-DRW). BoT: Zhang et al. 2021 (BagofTricks-LT), whose CE-DRW
# has class-balanced weights. Code: the official code of Ren et al. 2020 (balanced softmax), much longer than 200 epochs; its
# two numbers are quoted second-hand.
BASELINES = {
    "cifar10": {
        "CE": "70.4 Cao, 69.9 BoT",
        "CE-DRW": "73.1 BoT",
        "BS": "76.4 BoT, 77.9 Code",
        "LDAM-DRW": "77.0 Cao, 75.4 BoT",
    },
    "cifar100": {
        "CE": "38.3 Cao, 38.2 BoT",
        "CE-DRW": "38.4 BoT",
        "BS": "43.2 BoT, 44.1 Code",
        "LDAM-DRW": "42.0 Cao, 40.9 BoT",
    },
}

# Table 1's architectures were not published. These DARTS cells were drawn uniformly; networks of 20 of them match its
# multiply-accumulates within 1 %. A4 is 24 channels wide: at 36, even the lightest cells, of nothing but pooling, have 227 M.
ARCHITECTURES = {
    "A1": "|dil_conv_3x3~0|sep_conv_3x3~1|+|skip_connect~0|dil_conv_3x3~1|+"
    "|skip_connect~0|max_pool_3x3~3|+|dil_conv_5x5~0|dil_conv_3x3~2|//"
    "|max_pool_3x3~0|dil_conv_5x5~1|+|sep_conv_3x3~0|avg_pool_3x3~1|+"
    "|max_pool_3x3~1|skip_connect~2|+|dil_conv_5x5~2|avg_pool_3x3~3|",
    "A2": "|avg_pool_3x3~0|max_pool_3x3~1|+|dil_conv_3x3~0|dil_conv_5x5~1|+"
    "|sep_conv_5x5~2|dil_conv_5x5~3|+|max_pool_3x3~2|max_pool_3x3~4|//"
    "|dil_conv_5x5~0|max_pool_3x3~1|+|dil_conv_3x3~1|dil_conv_5x5~2|+"
    "|avg_pool_3x3~0|sep_conv_3x3~3|+|skip_connect~3|dil_conv_5x5~4|",
    "A3": "|skip_connect~0|dil_conv_3x3~1|+|avg_pool_3x3~0|dil_conv_3x3~2|+"
    "|avg_pool_3x3~0|dil_conv_3x3~2|+|dil_conv_3x3~0|dil_conv_5x5~4|//"
    "|dil_conv_3x3~0|dil_conv_3x3~1|+|sep_conv_3x3~0|dil_conv_3x3~1|+"
    "|sep_conv_3x3~2|avg_pool_3x3~3|+|sep_conv_3x3~0|dil_conv_3x3~4|",
    "A4": "|skip_connect~0|dil_conv_3x3~1|+|max_pool_3x3~0|skip_connect~1|+"
    "|max_pool_3x3~2|sep_conv_5x5~3|+|skip_connect~2|dil_conv_5x5~4|//"
    "|sep_conv_5x5~0|sep_conv_3x3~1|+|avg_pool_3x3~1|sep_conv_5x5~2|+"
    "|dil_conv_5x5~1|avg_pool_3x3~3|+|sep_conv_3x3~1|skip_connect~2|",
}
CHANNELS = {"A1": 36, "A2": 36, "A3": 36, "A4": 24}
