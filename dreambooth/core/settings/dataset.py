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
        "What your pictures show, with a rare word for the subject: a photo of sks dog. [filewords] stands for a "
        "picture's caption file, or else for its name.",
    )
    class_prompt: str = setting(
        "",
        "Class Prompt",
        "What kind of thing it is: a photo of a dog. With [filewords] class pictures are drawn from your captions.",
    )
    instance_token: str = setting(
        "",
        "Instance Token",
        "The rare word for the subject, such as sks. It is added to captions that lack it, before the class token"
        " if they have one.",
    )
    class_token: str = setting(
        "", "Class Token", "The word for the kind of thing, such as dog. It replaces the subject in class prompts."
    )
    repeats: int = setting(
        1,
        "Repeats",
        "How often each epoch uses these pictures; balances concepts of different size.",
        min=1,
        max=10_000,
    )
    held_out: int = setting(
        0,
        "Pictures Held Out",
        "This many are not trained, but show when the run is best (validation); one or two are enough.",
        min=0,
        max=1000,
    )
    class_mode: Literal["fill", "folder", "prediction", "off"] = setting(
        "fill",
        "Class Pictures",
        "fill: the base model draws what is missing. folder: the class folder is used as it is. prediction: no "
        "pictures; a LoRA is kept close to what the base model predicts for the class prompt. off: none.",
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
        "With class pictures on fill: how many for each of yours; 0 turns prior preservation off.",
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
        "How much each of these pictures counts, relative to those of other concepts.",
        min=0.01,
        max=100,
        advanced=True,
    )

    @property
    def draws_class_images(self) -> bool:
        """Whether the base model is to draw class images that are missing."""
        return self.class_mode == "fill" and self.num_class_images_per > 0


@dataclass
class Captions:
    """What varies in the words of your pictures from step to step."""

    shuffle_tags: bool = setting(
        False,
        "Shuffle Tags",
        "The order of comma-separated tags changes from step to step, so that no order is learned.",
    )
    keep_tags: int = setting(
        1,
        "Tags Kept in Front",
        "This many tags at the start of a caption are never moved or dropped.",
        min=0,
        max=100,
    )
    keep_marker: str = setting(
        "",
        "Marker Behind Kept Tags",
        "A separator in captions, such as |||. Tags before it are kept in front instead, however many they are, "
        "and tags after a second one at the end. The separator itself is not read.",
    )
    tie: str = setting(
        "",
        "Marker Between Tied Tags",
        "A separator in captions, such as ;;;. Tags joined by it are moved or dropped together, and read with a "
        "comma in its place.",
        advanced=True,
    )
    tag_dropout: float = setting(
        0.0,
        "Tag Dropout",
        "The chance that a tag is dropped, except those kept in front, so that the model relies on no single one."
        " It is drawn from the seed once for each variant of a caption; more variants come closer to it.",
        min=0,
        max=1,
    )
    tag_dropout_except: str = setting(
        "",
        "Tags Never Left Out",
        "Tags that are never dropped, wherever they stand; several with commas between.",
        advanced=True,
    )
    variants: int = setting(
        8,
        "Variants of a Caption",
        "The most texts for each picture that shuffling, tag dropout, {red|blue} and captions of several lines "
        "can make.",
        min=1,
        max=256,
        advanced=True,
    )
    dropout: float = setting(
        0.0,
        "Caption Dropout",
        "The share of your pictures that is trained without a caption; more teaches style rather than words.",
        min=0,
        max=1,
    )
    dropout_every: int = setting(
        0,
        "Caption Dropout Frequency (Epochs)",
        "In one of so many epochs all of your pictures are trained without a caption: 2 is every second epoch; 0 "
        "is none.",
        min=0,
        max=10_000,
        advanced=True,
    )
    weighted: bool = setting(
        False,
        "Read (Word:1.2) as Weights",
        "As in the WebUI, (word:1.2) and ((word)) count more and [word] less: in captions and in prompts for "
        "class pictures, previews and Generate. Off, brackets are ordinary characters.",
        advanced=True,
    )
    prefix: str = setting("", "Caption Prefix", "Text before each of your captions; it is never shuffled.")
    suffix: str = setting("", "Caption Suffix", "Text after each of your captions; it is never shuffled.")


@dataclass
class Pictures:
    crop: Literal["centre", "random", "smart"] = setting(
        "centre",
        "Crop",
        "Which part of a picture is kept that is too wide or too high: the centre, a random part, or the part "
        "that stands out. A crop that you chose by hand takes precedence.",
    )
    buckets: bool = setting(
        True,
        "Aspect Ratio Buckets",
        "Wide and high pictures are trained in shapes of their own, with little cropped off; off crops every "
        "picture square.",
    )
    bucket_step: Literal[64, 32, 16, 8] = setting(
        64, "Bucket Steps", "Sides are multiples of this: smaller crops less off and makes more shapes.", advanced=True
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
        "Encoded pictures are kept with the model, so that the next run starts at once. Changed ones are encoded "
        "again.",
    )
    variants: int = setting(
        4,
        "Variants of a Picture",
        "With random crops or any of the next five settings: how many fixed versions of each picture are trained "
        "in turn. The first is only cropped.",
        min=2,
        max=64,
        advanced=True,
    )
    hflip: bool = setting(
        False,
        "Apply Horizontal Flip",
        "Every second variant is mirrored. Not for faces, writing or anything one-sided.",
    )
    crop_jitter: float = setting(
        0.0, "Crop Jitter", "Variants are cropped up to this share tighter, anywhere within the crop.", min=0, max=0.5
    )
    rotation: float = setting(
        0.0, "Rotation", "Variants are rotated by up to this many degrees, either way.", min=0, max=30, advanced=True
    )
    brightness: float = setting(
        0.0, "Brightness Jitter", "Variants are up to this share brighter or darker.", min=0, max=0.9, advanced=True
    )
    colour: float = setting(
        0.0, "Colour Jitter", "Variants are up to this share more or less saturated.", min=0, max=1, advanced=True
    )
