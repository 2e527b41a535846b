from types import SimpleNamespace

cmd_opts = SimpleNamespace(theme=None, api_auth=None, ckpt_dir=None, lora_dir=None, skip_load_model_at_start=False)


class OptionInfo:
    def __init__(self, default=None, label="", component=None, component_args=None, section=None):
        self.default, self.label, self.component, self.section = default, label, component, section


class Options:
    def __init__(self):
        self.data, self.labels = {}, {}
        self.outdir_txt2img_samples = self.outdir_txt2img_grids = ""

    def add_option(self, key, info):
        self.labels[key] = info
        self.data.setdefault(key, info.default)


opts = Options()

sd_model = None


class State:
    interrupted = skipped = False
    sampling_step = 0
    job = ""

    def begin(self, job):
        self.interrupted, self.sampling_step, self.job = False, 0, job

    def end(self):
        self.job = ""

    def interrupt(self):
        self.interrupted = True


state = State()


class TotalTQDM:
    """The console's bar over all batches of a picture: the next one goes on with it until it is cleared."""

    steps = 0

    def update(self):
        self.steps += 1

    def clear(self):
        self.steps = 0


total_tqdm = TotalTQDM()
