"""What is trained on: concepts, their captions and their pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dreambooth.core.schema import setting


@dataclass
class Concept:
    instance_data_dir: str = setting(
        "", "Dataset Directory", "The folder with the pictures of your subject or style.", path=True
    )
    instance_prompt: str = setting(
        "",
        "Instance Prompt",
        "What the pictures show, with a rare word for the subject: a photo of sks dog. "
        "[filewords] stands for the text file beside a picture, or else for its name.",
    )
    class_prompt: str = setting(
        "",
        "Class Prompt",
        "What the subject is one of: a photo of a dog. [filewords] draws class pictures from your captions.",
    )
    instance_token: str = setting(
        "",
        "Instance Token",
        "The rare word for the subject: sks. A caption without it gets it, before the class token where that stands.",
    )
    class_token: str = setting(
        "", "Class Token", "The word for what the subject is: dog. It takes the subject's place in class prompts."
    )
    repeats: int = setting(
        1, "Repeats", "How often each epoch sees these pictures; balances concepts of unlike size.", min=1, max=10_000
    )
    held_out: int = setting(
        0,
        "Pictures Held Out",
        "So many of these are only looked at, to tell when the run is best; one or two are enough.",
        min=0,
        max=1000,
    )
    class_mode: Literal["fill", "folder", "prediction", "off"] = setting(
        "fill",
        "Class Pictures",
        "fill has the base model make what is missing, folder takes the class folder as it is, prediction needs "
        "none: a LoRA keeps to what the base model predicts for the class prompt. off goes without.",
    )
    class_data_dir: str = setting(
        "",
        "Classification Dataset Directory",
        "The folder of class pictures; empty keeps them with the model.",
        path=True,
    )
    num_class_images_per: int = setting(
        0,
        "Class Images Per Instance Image",
        "In the mode fill, for each of yours; 0 turns prior preservation off.",
        min=0,
        max=1000,
    )
    class_negative_prompt: str = setting("", "Classification Negative Prompt", "What class pictures must not show.")
    class_guidance_scale: float = setting(
        7.5,
        "Classification CFG Scale",
        "How strictly class pictures follow their prompt.",
        min=1,
        max=30,
        advanced=True,
    )
    class_infer_steps: int = setting(
        20, "Classification Steps", "Sampling steps for each class picture.", min=1, max=200, advanced=True
    )
    loss_weight: float = setting(
        1.0,
        "Loss Weight",
        "How much each of these pictures counts beside those of other concepts.",
        min=0.01,
        max=100,
        advanced=True,
    )


@dataclass
class Captions:
    """What varies in the words of your pictures from step to step."""

    shuffle_tags: bool = setting(
        False, "Shuffle Tags", "The parts between commas change places from step to step, so that no order is learned."
    )
    keep_tags: int = setting(
        1,
        "Tags Kept in Front",
        "So many parts of a caption stay first when tags are shuffled, and are never left out.",
        min=0,
        max=100,
    )
    keep_marker: str = setting(
        "",
        "Marker Behind Kept Tags",
        "A sign in captions, such as |||: what stands before it is kept in front instead, however many tags that are, "
        "and what stands behind a second one at the end. The sign itself is not read.",
    )
    tie: str = setting(
        "",
        "Marker Between Tied Tags",
        "A sign in captions, such as ;;;: tags with it between them are shuffled or left out as one, and read with a "
        "comma there.",
        advanced=True,
    )
    tag_dropout: float = setting(
        0.0,
        "Tag Dropout",
        "The chance of each tag that is not kept to be left out, so that none leans on another. It is drawn from the "
        "seed for each variant of a caption, not anew at each step; with more variants it is met more closely.",
        min=0,
        max=1,
    )
    tag_dropout_except: str = setting(
        "", "Tags Never Left Out", "With commas between, wherever in a caption they stand.", advanced=True
    )
    variants: int = setting(
        8,
        "Variants of a Caption",
        "At most so many texts for each picture, from shuffled tags or tags left out, {red|blue} and captions of "
        "several lines.",
        min=1,
        max=256,
        advanced=True,
    )
    dropout: float = setting(
        0.0,
        "Caption Dropout",
        "The share of your pictures that is read without a caption; more teaches style, less the words.",
        min=0,
        max=1,
    )
    dropout_every: int = setting(
        0,
        "Caption Dropout Frequency (Epochs)",
        "Every so many epochs, one of them reads all of your pictures without a caption: 2 is each second; 0 none.",
        min=0,
        max=10_000,
        advanced=True,
    )
    weighted: bool = setting(
        False,
        "Read (Word:1.2) as Weights",
        "As in the WebUI, (word:1.2) and ((word)) count more and [word] less: in captions and in the prompts of the "
        "class, of previews and of pictures you generate. Off, brackets are read as they stand.",
        advanced=True,
    )
    prefix: str = setting("", "Caption Prefix", "Words before each of your captions; they are never shuffled.")
    suffix: str = setting("", "Caption Suffix", "Words after each of your captions; they are never shuffled.")


@dataclass
class Pictures:
    crop: Literal["centre", "random", "smart"] = setting(
        "centre",
        "Crop",
        "Which part is kept where a picture is too wide or too high: the middle, any part, or the part that stands "
        "out from the rest. A crop that you chose by hand goes before it.",
    )
    buckets: bool = setting(
        True,
        "Aspect Ratio Buckets",
        "Wide and high pictures keep nearly all of themselves in shapes of their own; off cuts every picture square.",
    )
    bucket_step: Literal[64, 32, 16, 8] = setting(
        64, "Bucket Steps", "Sides are multiples of this: smaller cuts off less and makes more shapes.", advanced=True
    )
    bucket_min_side: int = setting(
        0, "Smallest Bucket Side", "In pixels; 0 is half the resolution.", min=0, max=2048, advanced=True
    )
    bucket_max_side: int = setting(
        0, "Largest Bucket Side", "In pixels; 0 is twice the resolution.", min=0, max=4096, advanced=True
    )
    no_upscale: bool = setting(
        False, "Never Enlarge", "Small pictures are trained at their own size, in smaller shapes.", advanced=True
    )
    cache_on_disk: bool = setting(
        True,
        "Cache Latents on Disk",
        "Encoded pictures are kept with the model, so that the next run on them starts at once; one that has changed "
        "is encoded anew.",
    )
    variants: int = setting(
        4,
        "Variants of a Picture",
        "Each picture is trained in so many versions in turn, the first unchanged, where a crop is random or one of "
        "the next five is on.",
        min=2,
        max=64,
        advanced=True,
    )
    hflip: bool = setting(
        False,
        "Apply Horizontal Flip",
        "Every second variant is mirrored; not for faces, writing or anything one-sided.",
    )
    crop_jitter: float = setting(
        0.0, "Crop Jitter", "Variants are cut up to this share tighter, anywhere in the crop.", min=0, max=0.5
    )
    rotation: float = setting(
        0.0, "Rotation", "Variants are turned by up to so many degrees, either way.", min=0, max=30, advanced=True
    )
    brightness: float = setting(
        0.0, "Brightness Jitter", "Variants are up to this share lighter or darker.", min=0, max=0.9, advanced=True
    )
    colour: float = setting(
        0.0, "Colour Jitter", "Variants are up to this share more or less colourful.", min=0, max=1, advanced=True
    )
