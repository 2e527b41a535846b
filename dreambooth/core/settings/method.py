"""What of the model is trained, and how it is held in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dreambooth.core.schema import setting

# What full fine-tuning trains of the UNet: the names that are in both layouts of a model.
UNET_LAYERS = {"all": "", "attention": r"\.attn[12]\.", "cross_attention": r"\.attn2\."}
# The text encoders that are trained, by the names of a model's parts; most models have the first alone.
TEXT_ENCODERS = {
    "both": ("text_encoder", "text_encoder_2"),
    "first": ("text_encoder",),
    "second": ("text_encoder_2",),
}


@dataclass
class Tuning:
    train_unet: bool = setting(
        True, "Train UNET", "Off leaves the UNet as it is and trains only the text encoder.", advanced=True
    )
    text_encoder_ratio: float = setting(
        0.0,
        "Step Ratio of Text Encoder Training",
        "The share of the run that trains the text encoder too; 0 leaves it alone, which is quicker and drifts less.",
        min=0,
        max=1,
    )
    text_encoder_steps: int = setting(
        0,
        "Stop Text Encoder at Step",
        "The text encoder is trained until this step, in place of a share of the run; 0 goes by the share.",
        min=0,
        max=10_000_000,
        advanced=True,
    )
    text_encoders: Literal["both", "first", "second"] = setting(
        "both",
        "Which Text Encoders",
        "Of SDXL's two, which are trained where the text encoder is; the other stays as it is, and prompts are read by "
        "it once.",
        advanced=True,
    )
    unet_layers: Literal["all", "attention", "cross_attention"] = setting(
        "all",
        "Unfreeze Layers of the UNET",
        "What full fine-tuning trains: everything; the attention layers, a tenth of SD 1.5 and a third of SDXL; or "
        "those alone that read the prompt, a twentieth and a fifth.",
        advanced=True,
    )
    freeze_clip_normalization: bool = setting(
        False,
        "Freeze CLIP Normalization Layers",
        "Full fine-tuning of the text encoder leaves its normalisation layers alone; a LoRA never trains them.",
        advanced=True,
    )
    max_token_length: Literal[75, 150, 225] = setting(
        75,
        "Max Token Length",
        "Longer prompts are read in two or three pieces of 75 tokens, as the WebUI does; what is still longer is cut.",
    )
    clip_skip: int = setting(
        1,
        "Clip Skip",
        "As in the WebUI: 2 reads the last block but one of SD 1's text encoder. Draw with the same.",
        min=1,
        max=12,
    )
    pad_tokens: bool = setting(
        True,
        "Pad Tokens",
        "Short prompts are filled up as WebUIs fill them; off reads their words alone, which no WebUI does.",
        advanced=True,
    )
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = setting(
        "auto",
        "Mixed Precision",
        "Half precision is quicker on a GPU; auto takes the safest that this device is quick at. With no the results "
        "are drawn in full precision, too.",
    )
    use_ema: bool = setting(
        False, "Use EMA", "A running average of the weights is saved and previewed: steadier, a little behind."
    )
    ema_decay: float = setting(
        0.99,
        "EMA Decay",
        "How long the average remembers; it starts short and grows to this.",
        min=0,
        max=0.99999,
        advanced=True,
    )
    prior_loss_weight: float = setting(
        0.75, "Prior Loss Weight", "How much the class pictures count beside yours.", min=0, max=10
    )
    deterministic: bool = setting(
        False,
        "Deterministic",
        "Only computations that repeat bit for bit on a GPU, at some cost of speed; what cannot repeat is refused.",
        advanced=True,
    )
    trace_steps: bool = setting(
        True,
        "Trace Steps",
        "After a few steps, do only the operations that a step comes down to, without the Python around them. Quicker, "
        "with the same numbers; not for short runs.",
        advanced=True,
    )
    cuda_graphs: bool = setting(
        False,
        "CUDA Graphs",
        "Hand a traced step to the GPU as a whole, which then waits for nothing. The step's memory is held for good. "
        "It is held against PyTorch before it is used, but was not tried on a card yet.",
        advanced=True,
    )
    nonfinite_steps: int = setting(
        5,
        "Steps Left Out at Most",
        "A step whose loss is not a number is left out; optimizers other than plain AdamW take it without its "
        "gradients. After so many in a row the run goes back to its last state, with half the learning rate.",
        min=1,
        max=1000,
        advanced=True,
    )

    @property
    def text_encoder_learns(self) -> bool:
        return self.text_encoder_ratio > 0 or self.text_encoder_steps > 0


@dataclass
class Memory:
    attention: Literal["sdpa", "flash", "sliced", "xformers"] = setting(
        "sdpa",
        "Memory Attention",
        "sdpa takes the quickest kernel for each layer on nearly every device, and the least memory wherever it has "
        "one; flash that one alone; sliced takes less only where it has none; xformers needs that package, which is "
        "not set up, as sdpa takes its place.",
        advanced=True,
    )
    bf16_weights: bool = setting(
        False,
        "Weights in bf16",
        "Full fine-tuning in a quarter less memory with AdamW, in about half with Adafactor: the weights are held in "
        "bf16 and each change is rounded at random, so that small ones are not lost.",
    )
    unet_weights: Literal["whole", "int8", "nf4", "streamed"] = setting(
        "whole",
        "UNET's Weights",
        "How the UNet lies: whole on the card; under a LoRA or an embedding in 8 bits, which halves it and changes it "
        "a little, or in 4, which halves that and changes it more; or in the computer's memory, from where each block "
        "is fetched for its turn. All but whole need gradient checkpointing.",
        advanced=True,
    )
    checkpointed_share: float = setting(
        1.0,
        "Share That Is Checkpointed",
        "With gradient checkpointing: how much of what the UNet's blocks hold is worked out again, first what is "
        "quickest; less than 1, which is all, takes less time and more memory. The result is the same.",
        min=0.05,
        max=1,
        advanced=True,
    )
    step_in_backward: bool = setting(
        False,
        "Step in the Backward Pass",
        "Each gradient is applied and freed as soon as it is there, so that full fine-tuning holds hardly any; each is "
        "then clipped by its own norm.",
        advanced=True,
    )
    vae_decoding: Literal["whole", "sliced", "tiled"] = setting(
        "sliced",
        "Decoding of Pictures",
        "Previews and class pictures are decoded all at once, one at a time, or large ones in overlapping tiles.",
        advanced=True,
    )
    on_out_of_memory: Literal["retreat", "stop"] = setting(
        "retreat",
        "Out of Memory",
        "retreat goes on from the last state with what takes less memory: checkpointing, smaller batches added up to "
        "the same step. stop ends the run and says what would help.",
        advanced=True,
    )


@dataclass
class Embedding:
    """A word that learns vectors of its own, beside a LoRA (pivotal tuning) or alone (textual inversion)."""

    enabled: bool = setting(
        False,
        "Train Embedding",
        "The instance token learns what it means, beside the LoRA: more likeness, and the class drifts less. It is "
        "written as an embedding, which belongs to the LoRA.",
    )
    vectors: int = setting(
        2,
        "Number of Vectors per Token",
        "How many tokens of a prompt the word takes; more learn more, until the rest of the prompt is not heard.",
        min=1,
        max=32,
    )
    initial_text: str = setting(
        "",
        "Initialization Text",
        "What the word means at first; empty takes what the model makes of it.",
        advanced=True,
    )
    start_file: str = setting(
        "",
        "Embedding File",
        "An embedding to go on from, of any trainer; the number of vectors and what they mean at first are then that "
        "file's.",
        path=True,
        advanced=True,
    )
    ratio: float = setting(
        0.5,
        "Step Ratio of Embedding Training",
        "Beside a LoRA: the share of the run in which the word learns; after it only the LoRA does, and steps are "
        "quicker. A word alone learns to the end.",
        min=0.01,
        max=1,
        advanced=True,
    )


@dataclass
class Imagic:
    """Editing one picture by a text."""

    enabled: bool = setting(
        False,
        "Train Imagic Only",
        "For one picture and a prompt that says what to make of it: the prompt is fitted to the picture, then the "
        "model; pictures are drawn anywhere between the two. Of a full-size model a thousand Total Steps are usual.",
    )
    embedding_steps: int = setting(
        500,
        "Imagic Text Steps",
        "Steps that fit the prompt to the picture; the steps of the run fit the model.",
        min=1,
        max=100_000,
        advanced=True,
    )
    embedding_learning_rate: float = setting(
        1e-3, "Imagic Text Learning Rate", "Of the prompt's embedding.", min=0, max=1, advanced=True
    )


@dataclass
class Lora:
    kind: Literal["lora", "dora", "loha", "lokr", "oft"] = setting(
        "lora",
        "Lora Kind",
        "The usual LoRA; DoRA, which also learns how strong inputs are; LoHa and LoKr, which want up to ten times a "
        "LoRA's rates, and LoKr's files are the smallest; or OFT, which turns what the layers say, but which Forge "
        "does not read.",
    )
    rank: int = setting(
        16, "Lora Rank", "Larger learns more and makes a larger file; of OFT the side of its blocks.", min=1, max=512
    )
    alpha: float = setting(
        16.0,
        "Lora Alpha",
        "The LoRA's strength is alpha divided by rank, in training and in every WebUI; of a LoKr whose factors stay "
        "whole, as a large rank leaves them, it is 1, and of an OFT it counts in training alone.",
        min=0.01,
        max=1024,
    )
    conv_rank: int = setting(
        0,
        "Lora Convolution Rank",
        "Of convolutions that see more than a pixel, which Lora Layers convolutions adds; 0 is the rank above.",
        min=0,
        max=512,
        advanced=True,
    )
    conv_alpha: float = setting(
        0.0,
        "Lora Convolution Alpha",
        "What is divided by their rank; 0 is the alpha above.",
        min=0,
        max=1024,
        advanced=True,
    )
    dropout: float = setting(
        0.0,
        "Lora Dropout",
        "The share of the values between a LoRA's two matrices that is left out at random while training.",
        min=0,
        max=0.9,
        advanced=True,
    )
    layers: Literal["attention", "transformer", "convolutions"] = setting(
        "transformer",
        "Lora Layers",
        "Which layers of the UNet get a LoRA: attention only; the whole transformer blocks; or the convolutions too.",
    )
    blocks: str = setting(
        "",
        "Lora Blocks",
        "Which blocks of the UNet get a LoRA, by the names of LoRA Block Weight: IN04, IN04-OUT02, mid, out, several "
        "with commas between; empty is all.",
        advanced=True,
    )
    lokr_factor: int = setting(
        0,
        "LoKr Factor",
        "The sides of a LoKr's first factor, where they divide the layer's; 0 makes both factors about as large.",
        min=0,
        max=512,
        advanced=True,
    )
    max_norm: float = setting(
        0.0,
        "Lora Max Norm",
        "After each step, what a layer's LoRA adds to its weight is scaled down to this length (its norm) where it is "
        "longer, so that no layer is overdone; 1 is usual, 0 leaves it.",
        min=0,
        max=1000,
        advanced=True,
    )
    start_file: str = setting(
        "",
        "Lora Model",
        "A LoRA file to go on from, of any trainer; kind, rank, alpha and layers are then that file's.",
        path=True,
    )

    def size(self, pixels: int) -> tuple[int, float]:
        """The rank and the alpha of a layer whose kernel has so many pixels; a linear layer has one."""
        if pixels == 1:
            return self.rank, self.alpha
        return self.conv_rank or self.rank, self.conv_alpha or self.alpha
