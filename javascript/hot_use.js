/* The WebUI's own txt2img tab, filled by one press on the Dreambooth tab: any element with data-db-use, with the prompt
   in data-db-prompt and, where a checkpoint is to be chosen, its name in data-db-checkpoint (service/hot_use.py). */
"use strict";

const dreamboothHotUse = (() => {
    /* Writes into a text field so that gradio hears of it. */
    function write(field, text) {
        const own = Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value");
        own.set.call(field, text);
        field.dispatchEvent(new Event("input", {bubbles: true}));
    }

    /* The prompt, and the checkpoint if one is named, in txt2img, which is shown then. False where there is none. */
    function toTxt2img(prompt, checkpoint = "") {
        const field = gradioApp().querySelector("#txt2img_prompt textarea");
        if (!field) {
            return false;
        }
        write(field, prompt);
        if (checkpoint) {
            selectCheckpoint(checkpoint);
        }
        switch_to_txt2img();
        return true;
    }

    document.addEventListener("click", (event) => {
        const button = event.target.closest?.("[data-db-use]");
        if (button) {
            toTxt2img(button.dataset.dbPrompt, button.dataset.dbCheckpoint);
        }
    });
    return {toTxt2img};
})();
window.dreamboothHotUse = dreamboothHotUse;
