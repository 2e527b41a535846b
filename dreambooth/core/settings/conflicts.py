"""Settings of training that do not go together, each with the mend; found before anything starts."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dreambooth.core.addresses import is_private
from dreambooth.core.files import file_names
from dreambooth.core.models import unet_blocks

if TYPE_CHECKING:
    from dreambooth.core.settings import Settings

PRODIGY_LEAST_RATE = 0.01
LONGEST_NAME = 80  # as of a model; steps and endings follow
_NO_EPSILON = ("lion", "lion_8bit", "paged_lion_8bit")


def found(settings: Settings) -> list[str]:
    """Every problem of settings that are each right by themselves; one sentence each."""
    return [
        *_optimizer(settings),
        *_prodigy(settings),
        *_schedule_free(settings),
        *_bf16_weights(settings),
        *_step_in_backward(settings),
        *_cuda_graphs(settings),
        *_processes(settings),
        *_unet_weights(settings),
        *_checkpointed_share(settings),
        *_previews_and_rests(settings),
        *_webhook(settings.reporting.webhook_url),
        *_sizes(settings),
        *_class_pictures(settings),
        *_what_is_trained(settings),
        *_lora_blocks(settings),
        *_lora_plus(settings),
        *_embedding(settings),
        *_embedding_alone(settings),
        *_imagic(settings),
        *_name(settings.saving.custom_model_name),
    ]


def rate_keys(settings: Settings) -> tuple[str, str]:
    """The keys of the learning rates that count: of the UNet and of the text encoder; of words alone twice theirs."""
    if settings.is_embedding:
        return "learning.embedding_learning_rate", "learning.embedding_learning_rate"
    lora = "lora_" if settings.is_lora else ""
    return f"learning.{lora}learning_rate", f"learning.{lora}text_encoder_learning_rate"


def _optimizer(settings: Settings) -> list[str]:
    chosen, problems = settings.optimizer, []
    if chosen.epsilon and chosen.name in _NO_EPSILON:
        problems.append(f"optimizer.epsilon: {chosen.name} has none; set it to 0.")
    if chosen.beta2 and chosen.name == "adafactor":
        problems.append("optimizer.beta2: adafactor works out its own; set it to 0.")
    return problems


def _prodigy(settings: Settings) -> list[str]:
    if settings.optimizer.name != "prodigy":
        return []
    unet_key, text_key = rate_keys(settings)
    unet, text = (getattr(settings.learning, key.split(".")[1]) for key in (unet_key, text_key))
    if unet < PRODIGY_LEAST_RATE:
        return [
            f"{unet_key}: it is {unet:g}, but prodigy finds the rate itself and takes this as a factor; set it to 1."
        ]
    if settings.words_learn:
        text_key, text = "learning.embedding_learning_rate", settings.learning.embedding_learning_rate
    if settings.text_learns and text not in (unet, 0):
        return [f"{text_key}: prodigy has one factor for both parts; set it to {unet:g} as well, or to 0."]
    if settings.memory.bf16_weights:
        return [
            "memory.bf16_weights: prodigy looks at all weights at once in full precision; choose another optimizer."
        ]
    return []


def _schedule_free(settings: Settings) -> list[str]:
    if settings.optimizer.name != "adamw_schedule_free":
        return []
    problems, name = [], settings.learning.scheduler
    if name != "constant":
        problems.append(f"learning.scheduler: it is {name}, but adamw_schedule_free takes none; set it to constant.")
    if settings.tuning.use_ema:
        problems.append("tuning.use_ema: adamw_schedule_free averages the weights itself; turn it off.")
    if settings.memory.bf16_weights:
        problems.append("memory.bf16_weights: adamw_schedule_free needs full precision; choose another optimizer.")
    return problems


def _bf16_weights(settings: Settings) -> list[str]:
    if not settings.memory.bf16_weights:
        return []
    if settings.is_lora:
        return [
            "memory.bf16_weights: a LoRA is small, and tuning.mixed_precision says how the model around it lies; turn "
            "it off, or set general.method to full."
        ]
    if settings.is_embedding:
        return ["memory.bf16_weights: an embedding alone leaves the model's weights as they are; turn it off."]
    if settings.tuning.mixed_precision not in ("auto", "bf16"):
        chosen = settings.tuning.mixed_precision
        return [f"tuning.mixed_precision: it is {chosen}, but memory.bf16_weights computes in bf16; set it to bf16."]
    return []


def _step_in_backward(settings: Settings) -> list[str]:
    if not settings.memory.step_in_backward:
        return []
    key, problems = "memory.step_in_backward", []
    if settings.batching.gradient_accumulation_steps > 1:
        problems.append(
            f"{key}: gradients are gone before the next batch could be added to them; set "
            "batching.gradient_accumulation_steps to 1."
        )
    if settings.optimizer.name in ("prodigy", "adamw_schedule_free"):
        problems.append(f"{key}: {settings.optimizer.name} looks at all gradients at once; choose another optimizer.")
    if settings.tuning.mixed_precision == "fp16":
        problems.append(f"{key}: fp16 must see all gradients before any is applied; choose bf16 or no mixed precision.")
    return problems


def _cuda_graphs(settings: Settings) -> list[str]:
    key, problems = "tuning.cuda_graphs", []
    if settings.tuning.cuda_graphs and not settings.tuning.trace_steps:
        problems.append(f"{key}: they are made of traced steps; turn tuning.trace_steps on.")
    if settings.tuning.cuda_graphs and settings.memory.step_in_backward:
        problems.append(f"{key}: the optimizer's own step is not captured; turn memory.step_in_backward off.")
    return problems


def _processes(settings: Settings) -> list[str]:
    count, parts = settings.batching.num_processes, settings.batching.gradient_accumulation_steps
    if count == 1:
        return []
    problems, key = [], "batching.num_processes"
    if parts % count:
        problems.append(
            f"batching.gradient_accumulation_steps: it is {parts}, which {count} processes cannot share evenly; set it "
            f"to {-(-parts // count) * count}, or {key} to 1."
        )
    if settings.imagic.enabled:
        problems.append(f"{key}: imagic.enabled has one picture, which is not shared; set it to 1.")
    if settings.tuning.cuda_graphs:
        problems.append(
            "tuning.cuda_graphs: what processes tell each other may come in between while a graph is captured; turn it "
            f"off, or set {key} to 1."
        )
    return problems


def _unet_weights(settings: Settings) -> list[str]:
    memory, problems = settings.memory, []
    if memory.unet_weights == "whole":
        return []
    key = f"memory.unet_weights: it is {memory.unet_weights}"
    if not settings.batching.gradient_checkpointing:
        problems.append(
            f"{key}, which saves nothing while each block's weights are kept for the way back; turn "
            "batching.gradient_checkpointing on."
        )
    if not settings.is_full:
        if settings.is_lora and settings.lora.kind != "lora" and not settings.lora.start_file.strip():
            problems.append(f"{key}, but {settings.lora.kind} looks at the model's whole weights; set it to whole.")
        return problems
    if memory.unet_weights != "streamed":
        return [f"{key}, but full fine-tuning changes the model's weights; set it to whole or streamed."]
    if not memory.step_in_backward:
        problems.append(
            f"{key}, so that there is no room for all gradients of full fine-tuning; turn memory.step_in_backward on."
        )
    if settings.optimizer.name.startswith("paged_"):
        plain = settings.optimizer.name.removeprefix("paged_")
        problems.append(
            f"optimizer.name: what it remembers comes and goes with streamed weights anyway; set it to {plain}."
        )
    return problems


def _checkpointed_share(settings: Settings) -> list[str]:
    share, lying = settings.memory.checkpointed_share, settings.memory.unet_weights
    if share == 1:
        return []
    key = f"memory.checkpointed_share: it is {share:g}"
    if not settings.batching.gradient_checkpointing:
        return [f"{key}, but nothing is checkpointed; turn batching.gradient_checkpointing on, or set it to 1."]
    if lying != "whole":
        return [f"{key}, but with weights that are {lying} every block must be; set it to 1."]
    return []


def _previews_and_rests(settings: Settings) -> list[str]:
    problems = []
    for name in ("width", "height"):
        pixels = getattr(settings.previews, name)
        if pixels % 8 or 0 < pixels < 64:
            problems.append(
                f"previews.{name}: {pixels} is not a multiple of 8 of at least 64; set it to "
                f"{max(64, _near(pixels, 8))}, or to 0 for the size of training."
            )
    often, seconds = settings.intervals.epoch_pause_frequency, settings.intervals.epoch_pause_time
    if often and not seconds:
        problems.append(
            "intervals.epoch_pause_time: a rest of 0 seconds is none; set it, or epoch_pause_frequency to 0."
        )
    if seconds and not often:
        problems.append(
            "intervals.epoch_pause_frequency: it is 0, so there are no rests; set it, or epoch_pause_time to 0."
        )
    return problems


def _near(pixels: int, step: int) -> int:
    """The nearest multiple that is not 0."""
    return max(1, round(pixels / step)) * step


def _sizes(settings: Settings) -> list[str]:
    problems = []
    if settings.general.resolution % 64:
        pixels = settings.general.resolution
        problems.append(
            f"general.resolution: {pixels} is not a multiple of 64; set it to {_near(pixels, 64)}, or to 0 for the "
            "model's own."
        )
    step = settings.pictures.bucket_step
    for name in ("bucket_min_side", "bucket_max_side"):
        if (pixels := getattr(settings.pictures, name)) % step:
            problems.append(
                f"pictures.{name}: {pixels} is not a multiple of pictures.bucket_step, {step}; set it to "
                f"{_near(pixels, step)}, or to 0."
            )
    return problems


def _class_pictures(settings: Settings) -> list[str]:
    problems = []
    for number, concept in enumerate(settings.concepts):
        key = f"concepts.{number}"
        if concept.class_mode == "fill" and concept.num_class_images_per and not concept.class_prompt.strip():
            problems.append(
                f"{key}.class_prompt: it is empty, but num_class_images_per asks for class pictures; "
                "say what they show or set num_class_images_per to 0."
            )
        if concept.class_mode == "folder" and not concept.class_prompt.strip():
            problems.append(f"{key}.class_prompt: it is empty; say what the pictures of the class folder show.")
        if concept.class_mode == "folder" and not concept.class_data_dir.strip():
            problems.append(f"{key}.class_data_dir: it is empty; class_mode folder needs a folder, or choose fill.")
        if concept.class_mode == "prediction" and not concept.class_prompt.strip():
            problems.append(f"{key}.class_prompt: it is empty; say what is to stay as it is: a photo of a dog.")
        if concept.class_mode == "prediction" and settings.is_full:
            problems.append(
                f"{key}.class_mode: prediction keeps a LoRA to the model under it, which full fine-tuning changes; "
                "choose fill, or set general.method to lora."
            )
    return problems


def _what_is_trained(settings: Settings) -> list[str]:
    problems = []
    tuning, objective, lora = settings.tuning, settings.objective, settings.lora
    if not (tuning.train_unet or settings.is_embedding) and tuning.text_encoder_steps:
        problems.append(
            "tuning.text_encoder_steps: without the UNet the text encoder is trained for the whole run; set it to 0."
        )
    if tuning.unet_layers != "all" and not (settings.is_full and tuning.train_unet):
        mend = "lora.layers says which layers a LoRA has" if settings.is_lora else "tuning.train_unet is off"
        mend = "an embedding alone leaves the UNet as it is" if settings.is_embedding else mend
        problems.append(f"tuning.unet_layers: it is {tuning.unet_layers}, but {mend}; set it to all.")
    if not tuning.train_unet and tuning.text_encoder_ratio < 1 and not settings.words_learn:
        problems.append(
            "tuning.train_unet: without the UNet only the text encoder is trained, for the whole run; "
            "set tuning.text_encoder_ratio to 1 or train the UNet."
        )
    if objective.timestep_min > objective.timestep_max:
        problems.append(
            f"objective.timestep_min: {objective.timestep_min} is above objective.timestep_max, "
            f"{objective.timestep_max}, so that no step is left to train; set it to {objective.timestep_max} or less."
        )
    if objective.prior_loss_scale and objective.prior_loss_weight_min > tuning.prior_loss_weight:
        problems.append(
            f"objective.prior_loss_weight_min: {objective.prior_loss_weight_min:g} is above tuning.prior_loss_weight, "
            f"{tuning.prior_loss_weight:g}, which is to fall to it; set it to {tuning.prior_loss_weight:g} or less."
        )
    kind_counts = settings.is_lora and not lora.start_file.strip()  # else the file has its own, and is looked at
    if kind_counts and lora.kind in ("loha", "lokr", "oft") and lora.dropout:
        problems.append(f"lora.dropout: {lora.kind} has no input to drop; set it to 0 or choose lora or dora.")
    if kind_counts and lora.kind == "oft" and lora.rank < 2:
        problems.append("lora.rank: 1 leaves oft nothing to turn; set it to 2 or more.")
    if settings.memory.attention == "flash" and not tuning.pad_tokens:
        problems.append(
            "tuning.pad_tokens: flash attention cannot leave padding out; turn it on or set memory.attention to sdpa."
        )
    return problems


def _lora_blocks(settings: Settings) -> list[str]:
    key, lora = "lora.blocks", settings.lora
    if not settings.is_lora or not lora.blocks.strip():
        return []
    if reason := unet_blocks.problem(lora.blocks):
        return [f"{key}: {reason}."]
    if not settings.tuning.train_unet:
        return [f"{key}: they are the UNet's, and tuning.train_unet is off; leave it empty."]
    if lora.start_file.strip():
        return [f"{key}: the LoRA of lora.start_file has its own, all of which are gone on from; leave it empty."]
    return []


def _lora_plus(settings: Settings) -> list[str]:
    ratio, lora = settings.learning.lora_plus_ratio, settings.lora
    if not settings.is_lora or ratio == 1:
        return []
    key = f"learning.lora_plus_ratio: it is {ratio:g}"
    if settings.optimizer.name == "prodigy":
        return [f"{key}, but prodigy has one factor for all weights; set it to 1, or choose another optimizer."]
    if lora.kind not in ("lora", "dora") and not lora.start_file.strip():
        return [f"{key}, but {lora.kind} has no second matrix that begins at zero; set it to 1."]
    return []


def _embedding(settings: Settings) -> list[str]:
    """A word that learns has a LoRA beside it or is alone, and reading it is all that learns of reading."""
    if not settings.words_learn:
        return []
    problems, tuning = [], settings.tuning
    asked = "general.method embedding" if settings.is_embedding else "embedding.enabled"
    if settings.is_full:
        problems.append(
            "embedding.enabled: full fine-tuning trains every word's with tuning.text_encoder_ratio; turn it off, or "
            "set general.method to lora."
        )
    if not settings.words:
        problems.append(
            f"concepts.0.instance_token: it is empty, and {asked} is to train this word; write the rare word of your "
            "prompt: sks."
        )
    if not (tuning.train_unet or settings.is_embedding):
        problems.append("tuning.train_unet: a word is trained beside the UNet's LoRA; turn it on.")
    for name in ("text_encoder_ratio", "text_encoder_steps"):
        if getattr(tuning, name):
            problems.append(f"tuning.{name}: with {asked} a word learns in the text encoder's place; set it to 0.")
    return problems


def _embedding_alone(settings: Settings) -> list[str]:
    """All pictures teach a word, and those of the class would teach nothing: no word in their prompts changes."""
    if not settings.is_embedding:
        return []
    problems, why = [], "with general.method embedding only the word changes and the class stays as it is by itself"
    for number, concept in enumerate(settings.concepts):
        key = f"concepts.{number}"
        if settings.words and not concept.instance_token.strip():
            problems.append(f"{key}.instance_token: it is empty, so that its pictures teach no word; write its own.")
        if concept.class_mode == "fill" and concept.num_class_images_per:
            problems.append(f"{key}.num_class_images_per: {why}; set it to 0.")
        elif concept.class_mode in ("folder", "prediction"):
            problems.append(f"{key}.class_mode: {why}; set it to off.")
    return problems


def _imagic(settings: Settings) -> list[str]:
    """It has one picture, read with one text that nothing else may change."""
    if not settings.imagic.enabled:
        return []
    problems = []
    if len(settings.concepts) > 1:
        problems.append("imagic.enabled: it edits one picture; leave one concept.")
    concept = settings.concepts[0]
    if concept.class_mode in ("folder", "prediction") or (
        concept.class_mode == "fill" and concept.num_class_images_per
    ):
        problems.append("imagic.enabled: it has no pictures of a class; set concepts.0.class_mode to off.")
    if concept.held_out:
        problems.append("concepts.0.held_out: imagic.enabled has only one picture; set it to 0.")
    if settings.is_embedding:
        problems.append(
            "imagic.enabled: it trains the model too, which general.method embedding does not; turn it off."
        )
    elif settings.embedding.enabled:
        problems.append("embedding.enabled: with imagic.enabled the text itself is trained; turn it off.")
    for name in ("text_encoder_ratio", "text_encoder_steps"):
        if getattr(settings.tuning, name):
            problems.append(f"tuning.{name}: with imagic.enabled the text itself is trained; set it to 0.")
    for name, mend in (("shuffle_tags", "turn it off"), ("dropout", "set it to 0")):
        if getattr(settings.captions, name):
            problems.append(f"captions.{name}: with imagic.enabled the picture is read with one text; {mend}.")
    return problems


def _name(name: str) -> list[str]:
    if name and not file_names.is_sound(name):
        return [f"saving.custom_model_name: {name!r} cannot be a file's name; choose another."]
    if len(name) > LONGEST_NAME:
        return [f"saving.custom_model_name: it has {len(name)} characters; leave at most {LONGEST_NAME}."]
    return []


def _webhook(url: str) -> list[str]:
    """What is wrong with the address, without showing it."""
    if not url:
        return []
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return ["reporting.webhook_url: it is not an address; copy it again from the service that gave it."]
    if parts.scheme != "https" or not host:
        return ["reporting.webhook_url: it must be an https address; others would show it to everybody on the way."]
    if parts.username or parts.password or port not in (None, 443):
        return ["reporting.webhook_url: it must be a plain https address, without a user or a port of its own."]
    if is_private(host) or "." not in host.strip("."):
        return ["reporting.webhook_url: it leads to this machine or its own network; name an address of the internet."]
    return []
