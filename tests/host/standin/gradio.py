"""Enough of gradio for a tab without a page: what it is made of, and what its buttons do."""


class _Component:
    def __init__(self, value="", elem_id=None, **_):
        self.value, self.elem_id = value, elem_id
        self.handlers = []
        if Blocks.current:
            Blocks.current.components.append(self)

    def click(self, handler, outputs=()):
        self.handlers.append(handler)


class Blocks:
    current = None

    def __init__(self, **_):
        self.components, self.loads = [], []

    def __enter__(self):
        Blocks.current = self
        return self

    def __exit__(self, *_):
        Blocks.current = None

    def load(self, handler, outputs=()):
        self.loads.append(handler)


class HTML(_Component):
    pass


class Button(_Component):
    pass


class Checkbox(_Component):
    pass


class Number(_Component):
    pass


class Error(Exception):
    def __init__(self, message):
        super().__init__(message)
        self.message = message

    def __str__(self):
        return repr(self.message)
