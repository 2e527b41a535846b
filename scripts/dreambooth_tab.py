"""Registers the tab, the API and the settings with the WebUI, and nothing else.

The WebUI runs this file anew at each "Reload UI"; what lasts longer lives in the package.
"""

import html
import sys
import traceback
from pathlib import Path

import gradio as gr
from modules import script_callbacks

ROOT = Path(__file__).resolve().parents[1]


class Unsuitable(Exception):
    """Why this extension cannot work in this WebUI."""


def import_host():
    """Our package's host for WebUIs, whatever the folder is called that this extension was put into.

    Raises Unsuitable if another package of the name was imported before, or the WebUI's Python is too old.
    """
    if sys.version_info < (3, 10):
        raise Unsuitable("This WebUI's Python is {}.{}, but Dreambooth needs 3.10 or newer.".format(*sys.version_info))
    loaded = sys.modules.get("dreambooth")
    if loaded is not None:
        where = Path(loaded.__file__ or next(iter(loaded.__path__), "")).resolve()
        if ROOT / "dreambooth" not in (where, where.parent):
            raise Unsuitable(
                f"Another extension's package named 'dreambooth' is loaded already ({where}). Only one of the two can "
                "work: disable or remove the other one on the Extensions tab, then restart the WebUI."
            )
    sys.path.insert(0, str(ROOT))
    try:
        from dreambooth.host import webui
    finally:
        sys.path.remove(str(ROOT))
    return webui


def plain_tab(reason):
    """What the tab is when there is no page: the reason, the engine's state, and the way to repair it."""
    with gr.Blocks(analytics_enabled=False) as blocks:
        shown = gr.HTML(f"<p>{html.escape(reason)}</p>", elem_id="dreambooth_reason")
        if WEBUI is not None:
            state = gr.HTML(engine_text(), elem_id="dreambooth_engine")
            button = gr.Button("Set up or repair the engine", elem_id="dreambooth_repair")
            again = gr.Button("Look again", elem_id="dreambooth_look")
            button.click(repair, outputs=[state])
            again.click(engine_text, outputs=[state])
            blocks.load(engine_text, outputs=[state])
            for component in (shown, state, button, again):
                component.do_not_save_to_config = True
    return blocks


def engine_text():
    try:
        from dreambooth.service import installation

        state = installation.state()
    except Exception as error:  # noqa: BLE001  (what stands in the page's way may stand in this one's)
        return f"<p>How the engine is cannot be told. {html.escape(said(error))}</p>"
    if state["ready"]:
        return "<p>The engine is ready.</p>"
    if state["working"]:
        return f"<p>The engine is being set up: {html.escape(state['said'])}</p>"
    return f"<p>The engine is not ready. {html.escape(state['problem'])}</p>"


def said(error):
    """What the tab shows of an error: those that a person can mend are sentences, of others the kind says most."""
    return str(error) if hasattr(error, "problems") else f"{type(error).__name__}: {error}"


def repair():
    try:
        from dreambooth.service import installation

        installation.begin()
    except Exception as error:  # noqa: BLE001  (as above)
        return f"<p>{html.escape(said(error))}</p>"
    return "<p>The engine is being set up. This takes some minutes; Look again shows how far.</p>"


def add_tab():
    """Always a tab: the page, or the reason why there is none."""
    reason = PROBLEM
    if not reason:
        try:
            from dreambooth.ui.page import build

            return [(build(HOST), "Dreambooth", "dreambooth")]
        except Exception as error:  # noqa: BLE001  (a missing tab would say nothing at all)
            traceback.print_exc()
            reason = f"The page cannot be shown: {said(error)}"
    return [(plain_tab(reason), "Dreambooth", "dreambooth")]


def add_api(_demo, app):
    HOST.started(app)
    if getattr(app.state, "dreambooth", False):  # app.routes does not tell: newer FastAPIs keep a router as one entry
        return
    app.state.dreambooth = True
    from dreambooth.service import api, queue

    app.include_router(api.router(HOST))
    queue.watch(HOST)


def add_page_address(_demo, app):
    """Where the page's script looks; apart from the API, which must stand even where the page cannot be shown."""
    from dreambooth.ui.page import routes

    app.include_router(routes.router(HOST))


def add_settings():
    WEBUI.add_settings(gr.Checkbox, gr.Number)


WEBUI = HOST = None
PROBLEM = ""
try:
    WEBUI = import_host()
    HOST = WEBUI.WebUI()
    HOST.folders()
    HOST.start_lean()
except Unsuitable as error:
    PROBLEM = str(error)
except Exception as error:  # noqa: BLE001  (the tab says it)
    traceback.print_exc()
    PROBLEM = f"Dreambooth cannot start: {said(error)}"

script_callbacks.on_ui_tabs(add_tab)
if HOST is not None:
    script_callbacks.on_ui_settings(add_settings)
    script_callbacks.on_app_started(add_api)
    script_callbacks.on_app_started(add_page_address)
