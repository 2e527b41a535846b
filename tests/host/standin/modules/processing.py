import time
from types import SimpleNamespace

from PIL import Image

from modules import call_queue, shared

requests = []
meanwhile = []  # what a test has happen while a picture is drawn


class StableDiffusionProcessingTxt2Img:
    scripts = None

    def __init__(self, **wanted):
        self.wanted = wanted
        requests.append(self)
        self.is_open = True

    def close(self):
        self.is_open = False


def process_images(request):
    """Steps of a tenth of a second, then one grey picture for each seed, behind a grid of them."""
    assert not call_queue.queue_lock.acquire(False), "whoever draws has the queue"
    for happening in meanwhile:
        happening()
    assert not request.scripts.alwayson_scripts, "reForge looks for one of its own there"
    wanted = request.wanted
    for step in range(wanted["steps"]):
        shared.state.sampling_step = step
        shared.total_tqdm.update()
        if shared.state.interrupted:
            break
        time.sleep(0.1)
    seeds = [wanted["seed"] + number for number in range(wanted["batch_size"])]
    pictures = [Image.new("RGB", (wanted["width"], wanted["height"]), (seed % 256,) * 3) for seed in seeds]
    first = int(len(pictures) > 1)
    words = [f"{wanted['prompt']}\nSeed: {seed}" for seed in seeds]
    return SimpleNamespace(
        images=pictures[:first] + pictures, infotexts=words[:first] + words, index_of_first_image=first
    )
