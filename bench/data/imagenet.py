"""The ten-class subsets of ImageNet (ILSVRC 2012) of the field: class ids, folder names and class names.

Ids count the 1,000 classes by folder name, as torchvision does. The order is the papers' order of labels.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Subset:
    """Ten classes: ids in 0..999, WordNet folder names and class names, all in label order."""

    title: str
    source: str
    ids: tuple[int, ...]
    wnids: tuple[str, ...]
    class_names: tuple[str, ...]


MTT = "Cazenavette et al., Dataset Distillation by Matching Training Trajectories (CVPR 2022)"
GLAD = "Cazenavette et al., Generalizing Dataset Distillation via Deep Generative Prior (CVPR 2023)"
IDC = "Kim et al., Dataset Condensation via Efficient Synthetic-Data Parameterization (ICML 2022)"


def _subset(title: str, source: str, ids: str, wnids: str, class_names: str) -> Subset:
    return Subset(
        title,
        source,
        tuple(int(number) for number in ids.split()),
        tuple(f"n{number}" for number in wnids.split()),
        tuple(name.replace("_", " ") for name in class_names.split()),
    )


SUBSETS: dict[str, Subset] = {
    "imagenette": _subset(
        "ImageNette",
        MTT,
        "0 217 482 491 497 566 569 571 574 701",
        "01440764 02102040 02979186 03000684 03028079 03394916 03417042 03425413 03445777 03888257",
        "tench English_springer cassette_player chain_saw church French_horn garbage_truck gas_pump golf_ball "
        "parachute",
    ),
    "imagewoof": _subset(
        "ImageWoof (dogs)",
        MTT,
        "193 182 258 162 155 167 159 273 207 229",
        "02096294 02093754 02111889 02088364 02086240 02089973 02087394 02115641 02099601 02105641",
        "Australian_terrier Border_terrier Samoyed beagle Shih-Tzu English_foxhound Rhodesian_ridgeback dingo "
        "golden_retriever Old_English_sheepdog",
    ),
    "imagemeow": _subset(
        "ImageMeow (cats)",
        MTT,
        "281 282 283 284 285 291 292 290 289 287",
        "02123045 02123159 02123394 02123597 02124075 02129165 02129604 02128925 02128757 02127052",
        "tabby tiger_cat Persian_cat Siamese_cat Egyptian_cat lion tiger jaguar snow_leopard lynx",
    ),
    "imagesquawk": _subset(
        "ImageSquawk (birds)",
        MTT,
        "84 130 88 144 145 22 96 9 100 89",
        "01806143 02007558 01818515 02051845 02056570 01614925 01843383 01518878 01860187 01819313",
        "peacock flamingo macaw pelican king_penguin bald_eagle toucan ostrich black_swan cockatoo",
    ),
    "imagefruit": _subset(
        "ImageFruit",
        MTT,
        "953 954 949 950 951 957 952 945 943 948",
        "07753275 07753592 07745940 07747607 07749582 07768694 07753113 07720875 07718472 07742313",
        "pineapple banana strawberry orange lemon pomegranate fig bell_pepper cucumber Granny_Smith",
    ),
    "imageyellow": _subset(
        "ImageYellow",
        MTT,
        "309 986 954 951 987 779 599 291 72 11",
        "02206856 12057211 07753592 07749582 12144580 04146614 03530642 02129165 01773157 01531178",
        "bee yellow_lady's_slipper banana lemon corn school_bus honeycomb lion garden_spider goldfinch",
    ),
    "imagenet_a": _subset(
        "ImageNet-A of GLaD",
        GLAD,
        "255 376 984 364 500 986 333 576 148 135",
        "02111129 02489166 11879895 02457408 03042490 12057211 02342885 03447447 02071294 02013706",
        "Leonberg proboscis_monkey rapeseed three-toed_sloth cliff_dwelling yellow_lady's_slipper hamster gondola "
        "killer_whale limpkin",
    ),
    "imagenet_b": _subset(
        "ImageNet-B of GLaD",
        GLAD,
        "129 916 90 275 995 874 102 259 685 139",
        "02006656 06359193 01820546 02116738 13044778 04487081 01872401 02112018 03841143 02025239",
        "spoonbill web_site lorikeet African_hunting_dog earthstar trolleybus echidna Pomeranian odometer "
        "ruddy_turnstone",
    ),
    "imagenet_c": _subset(
        "ImageNet-C of GLaD",
        GLAD,
        "565 94 554 535 92 392 291 136 324 11",
        "03393912 01833805 03344393 03208938 01828970 02606052 02129165 02017213 02280649 01531178",
        "freight_car hummingbird fireboat disk_brake bee_eater rock_beauty lion European_gallinule cabbage_butterfly "
        "goldfinch",
    ),
    "imagenet_d": _subset(
        "ImageNet-D of GLaD",
        GLAD,
        "9 258 13 262 19 339 321 24 93 322",
        "01518878 02111889 01534433 02112706 01592084 02389026 02276258 01622779 01829413 02277742",
        "ostrich Samoyed junco Brabancon_griffon chickadee sorrel admiral great_grey_owl hornbill ringlet",
    ),
    "imagenet_e": _subset(
        "ImageNet-E of GLaD",
        GLAD,
        "816 96 100 145 739 713 783 76 688 326",
        "04277352 01843383 01860187 02056570 03992509 03924679 04153751 01774750 03857828 02281787",
        "spindle toucan black_swan king_penguin potter's_wheel photocopier screw tarantula oscilloscope lycaenid",
    ),
    "imagenet10": _subset(
        "ImageNet-10 of IDC",
        IDC,
        "452 64 374 236 993 176 882 904 503 74",
        "02869837 01749939 02488291 02107142 13037406 02091831 04517823 04589890 03062245 01773797",
        "bonnet green_mamba langur Doberman gyromitra Saluki vacuum window_screen cocktail_shaker garden_spider",
    ),
}
