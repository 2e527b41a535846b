"""Which parts of the model are trained, how they are stored in memory, and the options of each method."""

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
        True, "Train UNET", "Off freezes the UNet and trains only the text encoder.", advanced=True
    )
    text_encoder_ratio: float = setting(
        0.0,
        "Step Ratio of Text Encoder Training",
        "The share of the run in which the text encoder is trained too; 0 freezes it, which is faster and drifts less.",
        min=0,
        max=1,
    )
    text_encoder_steps: int = setting(
        0,
        "Stop Text Encoder at Step",
        "The text encoder is trained until this step, instead of a share of the run; 0 goes by the share.",
        min=0,
        max=10_000_000,
        advanced=True,
    )
    text_encoders: Literal["both", "first", "second"] = setting(
        "both",
        "Which Text Encoders",
        "Which of SDXL's two text encoders are trained. The other is frozen, and what it makes of the prompts is "
        "cached.",
        advanced=True,
    )
    unet_layers: Literal["all", "attention", "cross_attention"] = setting(
        "all",
        "Unfreeze Layers of the UNET",
        "What full fine-tuning trains: everything; the attention layers, a tenth of SD 1.5 and a third of SDXL; "
        "or only those that read the prompt, a twentieth and a fifth.",
        advanced=True,
    )
    freeze_clip_normalization: bool = setting(
        False,
        "Freeze CLIP Normalization Layers",
        "Full fine-tuning of the text encoder freezes its normalization layers; a LoRA never trains them.",
        advanced=True,
    )
    max_token_length: Literal[75, 150, 225] = setting(
        75,
        "Max Token Length",
        "Longer prompts are read in two or three chunks of 75 tokens, as in the WebUI; what is still longer is cut.",
    )
    clip_skip: int = setting(
        1,
        "Clip Skip",
        "As in the WebUI: 2 reads the last layer but one of SD 1's text encoder. Draw with the same.",
        min=1,
        max=12,
    )
    pad_tokens: bool = setting(
        True,
        "Pad Tokens",
        "Short prompts are padded as in the WebUIs; off reads their own tokens alone, as no WebUI does.",
        advanced=True,
    )
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = setting(
        "auto",
        "Mixed Precision",
        "Half precision is faster on a GPU; auto takes the safest kind that this device is fast at. With no, "
        "results are drawn in full precision, too.",
    )
    use_ema: bool = setting(
        False, "Use EMA", "A moving average of the weights is saved and previewed: steadier, a little behind."
    )
    ema_decay: float = setting(
        0.99,
        "EMA Decay",
        "How slowly the average follows the weights; it follows quickly at first and slows down to this.",
        min=0,
        max=0.99999,
        advanced=True,
    )
    prior_loss_weight: float = setting(
        0.75, "Prior Loss Weight", "How much the class pictures count, relative to yours.", min=0, max=10
    )
    deterministic: bool = setting(
        False,
        "Deterministic",
        "Uses only operations that repeat bit for bit on a GPU, at some cost of speed. Settings that cannot "
        "repeat are refused.",
        advanced=True,
    )
    trace_steps: bool = setting(
        True,
        "Trace Steps",
        "Records the operations of a training step once and replays them without Python's overhead: faster, with "
        "the same numbers. Short runs are not recorded.",
        advanced=True,
    )
    cuda_graphs: bool = setting(
        False,
        "CUDA Graphs",
        "Launches a recorded step on the GPU as a whole (CUDA graph), which then does not wait for the CPU. The "
        "step's memory stays reserved. It is checked against PyTorch before it is used, but was not yet tried on "
        "a real GPU.",
        advanced=True,
    )
    nonfinite_steps: int = setting(
        5,
        "Steps Left Out at Most",
        "A step whose loss is not finite is skipped; optimizers other than plain AdamW take it without its "
        "gradients. After this many in a row the run goes back to its last state, with half the learning rate.",
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
        "sdpa takes the fastest kernel for each layer on nearly every device, usually with the least memory; "
        "flash takes that kernel alone; sliced saves memory only where there is no such kernel; xformers needs "
        "its package, which is not installed, as sdpa replaces it.",
        advanced=True,
    )
    bf16_weights: bool = setting(
        False,
        "Weights in bf16",
        "Full fine-tuning in a quarter less memory with AdamW, in about half with Adafactor: weights are stored "
        "in bf16, with stochastic rounding, so that small changes are not lost.",
    )
    unet_weights: Literal["whole", "int8", "nf4", "streamed"] = setting(
        "whole",
        "UNET's Weights",
        "How the UNet is stored: whole on the GPU; under a LoRA or an embedding in 8 bits, which halves it with a"
        " small error, or in 4, which halves that with a larger one; or streamed from main memory, block by "
        "block. All but whole need gradient checkpointing.",
        advanced=True,
    )
    checkpointed_share: float = setting(
        1.0,
        "Share That Is Checkpointed",
        "With gradient checkpointing: the share of the UNet's activations that is recomputed, the cheapest first."
        " Less than 1, which is all, takes less time and more memory. The result is the same.",
        min=0.05,
        max=1,
        advanced=True,
    )
    step_in_backward: bool = setting(
        False,
        "Step in the Backward Pass",
        "Applies and frees each gradient as soon as it is computed (fused backward pass), so that full "
        "fine-tuning stores almost none. Each is then clipped by its own norm.",
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
        "retreat continues from the last state with what takes less memory: checkpointing, or smaller batches "
        "accumulated to the same step. stop ends the run and says what would help.",
        advanced=True,
    )


@dataclass
class Embedding:
    """A word that learns vectors of its own, beside a LoRA (pivotal tuning) or alone (textual inversion)."""

    enabled: bool = setting(
        False,
        "Train Embedding",
        "Trains an embedding for the instance token beside the LoRA (pivotal tuning): more likeness and less "
        "drift of the class. It is saved as an embedding file, which belongs to the LoRA.",
    )
    vectors: int = setting(
        2,
        "Number of Vectors per Token",
        "How many tokens of a prompt the word takes. More can learn more, until the rest of the prompt is ignored.",
        min=1,
        max=32,
    )
    initial_text: str = setting(
        "",
        "Initialization Text",
        "What the word means at first; empty starts from what the model makes of the word.",
        advanced=True,
    )
    start_file: str = setting(
        "",
        "Embedding File",
        "An embedding of any trainer to continue from. It also sets the number of vectors and what they mean at first.",
        path=True,
        advanced=True,
    )
    ratio: float = setting(
        0.5,
        "Step Ratio of Embedding Training",
        "Beside a LoRA: the share of the run in which the embedding is trained. After it only the LoRA is, and "
        "steps are faster. An embedding alone is trained to the end.",
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
        "Edits one picture; the prompt says what it should become. The prompt's embedding is fitted to the "
        "picture, then the model is; pictures can be drawn anywhere between the two. A full-size model usually "
        "takes 1000 Total Steps.",
    )
    embedding_steps: int = setting(
        500,
        "Imagic Text Steps",
        "Steps that fit the prompt's embedding to the picture; the steps of the run fit the model.",
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
        "lora is the usual one; dora also trains magnitudes; loha and lokr need up to ten times a LoRA's rates, "
        "and lokr's files are the smallest; oft rotates the layers' outputs, and Forge does not read it.",
    )
    rank: int = setting(
        16, "Lora Rank", "Larger learns more and makes a larger file; for OFT the size of its blocks.", min=1, max=512
    )
    alpha: float = setting(
        16.0,
        "Lora Alpha",
        "The LoRA is scaled by alpha divided by rank, in training and in every WebUI. A LoKr whose factors stay "
        "whole, as a large rank leaves them, is scaled by 1; for OFT alpha counts in training alone.",
        min=0.01,
        max=1024,
    )
    conv_rank: int = setting(
        0,
        "Lora Convolution Rank",
        "For convolutions larger than 1x1, which Lora Layers convolutions adds; 0 is the rank above.",
        min=0,
        max=512,
        advanced=True,
    )
    conv_alpha: float = setting(
        0.0,
        "Lora Convolution Alpha",
        "For those convolutions; 0 is the alpha above.",
        min=0,
        max=1024,
        advanced=True,
    )
    dropout: float = setting(
        0.0,
        "Lora Dropout",
        "The share of the values between a LoRA's two matrices that is dropped at random while training.",
        min=0,
        max=0.9,
        advanced=True,
    )
    layers: Literal["attention", "transformer", "convolutions"] = setting(
        "transformer",
        "Lora Layers",
        "Which layers of the UNet get a LoRA: attention only; whole transformer blocks; or convolutions too.",
    )
    blocks: str = setting(
        "",
        "Lora Blocks",
        "Which blocks of the UNet get a LoRA, by the names of LoRA Block Weight: IN04, IN04-OUT02, mid, out; "
        "several with commas between. Empty is all.",
        advanced=True,
    )
    lokr_factor: int = setting(
        0,
        "LoKr Factor",
        "The size of a LoKr's first factor, where it divides the layer's; 0 makes both factors about equally large.",
        min=0,
        max=512,
        advanced=True,
    )
    max_norm: float = setting(
        0.0,
        "Lora Max Norm",
        "After each step, what a layer's LoRA adds to its weight is scaled down to this norm where it is larger, "
        "so that no layer is overdone; 1 is usual, 0 is off.",
        min=0,
        max=1000,
        advanced=True,
    )
    start_file: str = setting(
        "",
        "Lora Model",
        "A LoRA of any trainer to continue from. It also sets kind, rank, alpha and layers.",
        path=True,
    )

    def size(self, pixels: int) -> tuple[int, float]:
        """The rank and the alpha of a layer whose kernel has so many pixels; a linear layer has one."""
        if pixels == 1:
            return self.rank, self.alpha
        return self.conv_rank or self.rank, self.conv_alpha or self.alpha
