class ScriptRunner:
    def __init__(self):
        self.alwayson_scripts = []
