"""Flags that the WebUI knows because of this extension. Imports nothing and changes nothing."""


def preload(parser):
    parser.add_argument(
        "--dreambooth-models-path",
        type=str,
        metavar="DIR",
        default=None,
        help="where the models that are being taught lie (default: dreambooth in the models folder)",
    )
    parser.add_argument(
        "--lora-models-path",
        type=str,
        metavar="DIR",
        default=None,
        help="where trained LoRAs are written (default: the WebUI's own LoRA folder)",
    )
