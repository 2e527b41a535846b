/* The buttons and captions of what is drawn on the Dreambooth page: each asks the API for one thing. */
"use strict";

const dreamboothButtons = (() => {
    const SURE_MS = 10000; // time for a second press
    const ASK_TWICE = "#db_discard, #db_delete, #db_page [data-db-twice]";

    /* Asks the API for a change. Returns its answer; throws what a person can mend. */
    async function send(address, method, body) {
        const headers = {"X-Dreambooth-Token": dreamboothPage.token(), "Content-Type": "application/json"};
        let response;
        try {
            response = await fetch(address, {method, headers, body: JSON.stringify(body)});
        } catch {
            throw new Error("The WebUI does not answer; try again when it does.");
        }
        if (!response.ok) {
            throw new Error(await dreamboothPage.refusal(response));
        }
        return response.json().catch(() => ({})); // what stands between may answer with a page of its own
    }

    /* Asks, and shows in the view around `part` what has come of it, or what is to be mended. Returns the answer; nothing
       where it was refused. */
    async function change(part, ...asked) {
        const view = part.closest(".db-live");
        try {
            const answer = await send(...asked);
            dreamboothPage.note(view, "db-refused", "");
            dreamboothPage.look();
            return answer;
        } catch (error) {
            dreamboothPage.note(view, "db-refused", error.message);
        }
    }

    /* A caption was changed under its picture: it is written at once. */
    async function captioned({target}) {
        const {dbCaption: file, dbAddress: address, dbFolder: folder} = target.dataset || {};
        if (file && await change(target, address, "PUT", {file, folder, text: target.value})) {
            target.blur();
        }
    }

    /* A button of a view that asks the API for one thing: to go on from a state, to export it, to take a picture away, to
       delete a result. */
    async function asked(event) {
        const button = event.target.closest?.("#db_page [data-db-send]");
        if (!button) {
            return;
        }
        const view = button.closest(".db-live");
        const isGone = button.matches(".db-away, .db-delete"); // what it stands beside
        const answer = await change(button, button.dataset.dbSend, "POST", JSON.parse(button.dataset.dbBody));
        if (answer?.done) {
            dreamboothPage.note(view, "db-done", answer.done);
        }
        if (answer && isGone) {
            dreamboothPage.lookAgain(); // it counts no more
        } else if (answer?.done) {
            dreamboothPage.press("db_refresh"); // the controls as they are now
        }
    }

    function showMore(event) {
        const button = event.target.closest?.("#db_page [data-db-more]");
        if (button) {
            const place = button.closest(".db-live");
            place.dataset.dbShown = place.querySelectorAll(".db-tile").length + Number(button.dataset.dbMore);
            dreamboothPage.look();
        }
    }

    /* Python puts back the settings from before what the message beside the button tells of. */
    function undone(event) {
        if (event.target.closest?.("#db_page [data-db-undo]")) {
            dreamboothPage.ask("db_undo");
        }
    }

    /* What destroys or hides work takes a second press; a double click is one. */
    function confirmTwice(event) {
        const button = event.target.closest?.(ASK_TWICE);
        if (!button) {
            return;
        }
        if (button.dataset.dbSure && event.detail > 1) {
            event.stopImmediatePropagation();
            event.preventDefault();
            return;
        }
        if (button.dataset.dbSure) {
            setTimeout(button.dbForget); // a third press asks again, maybe about another model
            return;
        }
        event.stopImmediatePropagation();
        event.preventDefault();
        const label = button.textContent;
        button.dataset.dbSure = "yes";
        const again = dreamboothPage.translated("Press again:");
        button.textContent = `${again} ${label.trim().toLowerCase()}`;
        dreamboothAccess.tell(button.textContent);
        const timer = setTimeout(() => button.dbForget(), SURE_MS);
        button.dbForget = () => {
            clearTimeout(timer);
            delete button.dataset.dbSure;
            button.textContent = label;
        };
    }

    /* A key that is held down presses a button again and again. */
    function notByHolding(event) {
        if (event.repeat && event.target.closest?.(ASK_TWICE)) {
            event.preventDefault();
        }
    }

    document.addEventListener("change", captioned, true);
    document.addEventListener("keydown", notByHolding, true);
    document.addEventListener("click", confirmTwice, true);
    document.addEventListener("click", showMore, true);
    document.addEventListener("click", undone);
    document.addEventListener("click", asked);
    return {change};
})();
window.dreamboothButtons = dreamboothButtons;
