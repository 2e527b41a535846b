/* The WebUI's own txt2img tab, filled by one press on the Dreambooth tab: any element with data-db-use, with the prompt
   in data-db-prompt and, where a checkpoint is to be chosen, its name in data-db-checkpoint. How a picture was drawn is
   in data-db-parameters, which the WebUI reads from its prompt with a button of its own (service/use_in_txt2img.py). */
"use strict";

const dreamboothHotUse = (() => {
    /* Writes into a text field so that gradio hears of it. */
    function write(field, text) {
        const own = Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value");
        own.set.call(field, text);
        field.dispatchEvent(new Event("input", {bubbles: true}));
    }

    const READ = "#tab_txt2img #paste, #txt2img_tools #paste, #txt2img_paste"; // the last is SD.Next's

    /* The prompt, the checkpoint if one is named and what else is given, in txt2img, which is shown then. False where
       there is none. */
    function toTxt2img(prompt, checkpoint = "", parameters = "") {
        const field = gradioApp().querySelector("#txt2img_prompt textarea");
        if (!field) {
            return false;
        }
        const read = parameters ? gradioApp().querySelector(READ) : null;
        write(field, read ? parameters : prompt);
        read?.click();
        if (checkpoint) {
            selectCheckpoint(checkpoint);
        }
        switch_to_txt2img();
        return true;
    }

    document.addEventListener("click", (event) => {
        const button = event.target.closest?.("[data-db-use]");
        if (button) {
            toTxt2img(button.dataset.dbPrompt, button.dataset.dbCheckpoint, button.dataset.dbParameters);
        }
    });
    return {toTxt2img};
})();
window.dreamboothHotUse = dreamboothHotUse;
