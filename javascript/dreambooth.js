/* Keeps the Dreambooth page current. It draws what /dreambooth/page/live says of the folders and holds nothing itself:
   no value of a control is read or written here. */
"use strict";

const dreamboothPage = (() => {
    const DRAFT_MS = 600; // quiet time after which a change is saved
    const RUNNING_MS = 1000;
    const IDLE_MS = 4000;
    const SILENT_MS = 10000; // a WebUI that is starting is disturbed by requests
    const KEY = /^([a-z_]+(?:\.[a-z0-9_]+)+): /;

    let draftTimer = null;
    let lookTimer = null;
    let lastState = null;

    const root = () => (typeof gradioApp === "function" ? gradioApp() : document);
    const find = (selector) => root().querySelector(selector);
    const all = (selector) => Array.from(root().querySelectorAll(selector));

    function token() {
        return find("[data-db-token]")?.dataset.dbToken || "";
    }

    function withToken(address) {
        return `${address}&token=${encodeURIComponent(token())}`;
    }

    /* A word on the page that style.css goes by, such as the method or the state of the run. */
    function mark(name, value) {
        const page = find("#db_page");
        if (page) {
            page.dataset[`db${name[0].toUpperCase()}${name.slice(1)}`] = String(value);
        }
    }

    /* A control was changed by hand: save soon, and say so until it is. */
    function changed() {
        mark("unsaved", true);
        clearTimeout(draftTimer);
        draftTimer = setTimeout(() => {
            draftTimer = null;
            find("button#db_save_draft, #db_save_draft button")?.click();
        }, DRAFT_MS);
    }

    /* Python has answered: what it was sent is saved, or the reason why not is on the page. */
    function answered() {
        if (draftTimer === null) {
            mark("unsaved", false);
        }
        markProblems();
        markChanged();
        look();
    }

    /* Looks at once and then again and again. */
    function look() {
        clearTimeout(lookTimer);
        lookTimer = setTimeout(keepLooking, 50);
    }

    async function keepLooking() {
        clearTimeout(lookTimer);
        let working = false;
        if (find("#db_page") && !document.hidden) {
            nameFields();
            const states = await Promise.all(visible().map(refresh));
            working = states.some((state) => state === "running" || state === "queued");
        }
        const silent = all(".db-silent").length > 0;
        lookTimer = setTimeout(keepLooking, silent ? SILENT_MS : working ? RUNNING_MS : IDLE_MS);
    }

    /* The places to fill: each once, though gradio 3 gives two elements the same id. */
    function visible() {
        return all(".db-live").filter((place) => place.dataset.dbLive === "run" || place.offsetParent !== null);
    }

    async function refresh(place) {
        const {dbLive: view, dbModel: model, dbRow: row = 0, dbShown: shown} = place.dataset;
        const query = new URLSearchParams({view, model, row, ...(shown && {shown})});
        let answer;
        try {
            answer = await fetch(`dreambooth/page/live?${query}`, {headers: {"X-Dreambooth-Token": token()}});
        } catch {
            return silent(place, "The WebUI does not answer. A run goes on without it.");
        }
        if (answer.status === 403) {
            return silent(place, "The WebUI was started anew; reload this page.");
        }
        if (!answer.ok) {
            return silent(place, await answer.text());
        }
        const fresh = document.createElement("template");
        fresh.innerHTML = await answer.text();
        place.querySelector(":scope > .db-silent")?.remove();
        return draw(place, fresh.content.firstElementChild);
    }

    function silent(place, words) {
        let note = place.querySelector(":scope > .db-silent");
        if (!note) {
            note = document.createElement("p");
            note.className = "db-silent db-note";
            place.prepend(note);
        }
        note.textContent = words;
        return "silent";
    }

    /* Replaces only the sections that changed, so that nothing flashes and what was opened stays open. */
    function draw(place, fresh) {
        for (const section of fresh.querySelectorAll(":scope > section")) {
            const name = section.dataset.dbPart;
            const text = section.innerHTML;
            let old = place.querySelector(`:scope > section[data-db-part="${name}"]`);
            if (!old) {
                old = document.createElement("section");
                old.dataset.dbPart = name;
                place.append(old);
            }
            if (old.dbText === text) {
                continue;
            }
            if (old.contains(document.activeElement) && document.activeElement.matches("textarea")) {
                continue; // somebody writes there; the next look draws it
            }
            old.dbText = text;
            const open = old.querySelector("details")?.open;
            for (const picture of section.querySelectorAll("[data-db-src]")) {
                picture[picture.tagName === "A" ? "href" : "src"] = withToken(picture.dataset.dbSrc);
            }
            const dark = document.querySelector("body.dark, .dark #db_page, #db_page .dark") !== null;
            for (const sheet of section.querySelectorAll("iframe")) {
                sheet.srcdoc = sheet.srcdoc.replace("(prefers-color-scheme: dark)", dark ? "all" : "not all");
            }
            old.replaceChildren(...section.childNodes);
            if (open) {
                const details = old.querySelector("details");
                details.open = true;
                const log = details.querySelector("pre");
                log.scrollTop = log.scrollHeight;
            }
        }
        const kept = new Set(Array.from(fresh.children, (section) => section.dataset.dbPart));
        for (const old of place.querySelectorAll(":scope > section")) {
            if (!kept.has(old.dataset.dbPart)) {
                old.remove();
            }
        }
        const state = fresh.dataset.dbState;
        if (place.dataset.dbLive === "download" && place.dbWas === "running" && state === "done") {
            find("button#db_create, #db_create button")?.click(); // the model can be made now
        }
        if (["model", "export"].includes(place.dataset.dbLive) && place.dbWas === "running" && state !== "running") {
            lookAgain(); // a file was exported
        }
        place.dbWas = state;
        if (place.dataset.dbLive === "run") {
            ran(place.dataset.dbModel, state);
        }
        markProblems();
        markChanged();
        return state;
    }

    /* The buttons follow the state of the run; when it ends, what hangs on its results is read anew. */
    function ran(model, state) {
        const engineFirst = state === "unready" || state === "working"; // with or without a model
        mark("state", model || engineFirst ? state : "nothing");
        const now = `${model} ${state}`;
        if (lastState === `${model} running` && lastState !== now) {
            lookAgain();
        }
        lastState = now;
    }

    function lookAgain() {
        find("button#db_look_again, #db_look_again button")?.click();
    }

    /* The number beside a slider is not named in every release of gradio. */
    function nameFields() {
        for (const field of all("#db_page .block :is(input[type=number], input[type=range]):not([aria-label])")) {
            const words = field.closest(".block").querySelector("label, [data-testid=block-info]")?.textContent.trim();
            if (words && !Array.from(field.labels || []).some((label) => label.textContent.trim())) {
                field.setAttribute("aria-label", words);
            }
        }
        for (const group of all("#db_page fieldset:not([aria-label])")) {
            group.setAttribute("aria-label", group.querySelector("[data-testid=block-info]")?.textContent.trim() || "");
        }
        for (const head of all("#db_page div.label-wrap")) { // gradio 3: no keyboard reaches it
            asButton(head, head.textContent.trim());
            head.setAttribute("aria-expanded", head.classList.contains("open"));
        }
        for (const field of all("#db_page input[type=file]")) { // nor this
            if (!field.closest("button, [tabindex]")) {
                asButton(field.parentElement, field.closest(".block").querySelector("label")?.textContent.trim() || "");
            }
        }
    }

    function asButton(element, words) {
        element.tabIndex = 0;
        element.dataset.dbPressed = "";
        element.setAttribute("role", "button");
        element.setAttribute("aria-label", words);
    }

    /* What stands in for a button is pressed like one. */
    function pressed(event) {
        if (event.target.matches?.("#db_page [data-db-pressed]") && (event.key === "Enter" || event.key === " ")) {
            event.preventDefault();
            event.target.click();
            setTimeout(nameFields, 50);
        }
    }

    /* Puts each sentence about a setting under its control. */
    function markProblems() {
        const page = find("#db_page");
        if (!page) {
            return;
        }
        const row = find("#db_shown_row input")?.value || "0";
        const sentences = new Map();
        for (const list of all("#db_page [data-db-problems]")) {
            for (const problem of JSON.parse(list.dataset.dbProblems)) {
                const key = problem.match(KEY);
                if (key) {
                    const field = key[1].replace(new RegExp(`\\.${row}\\.`), ".N.").replaceAll(".", "_");
                    sentences.set(`db_${field}`, problem.slice(key[0].length));
                }
            }
        }
        for (const old of all("#db_page .db-wrong")) {
            if (!sentences.has(old.id)) {
                old.classList.remove("db-wrong");
                old.querySelector(":scope > .db-sentence")?.remove();
            }
        }
        for (const [id, sentence] of sentences) {
            const field = find(`#${id}`);
            if (!field) {
                continue;
            }
            field.classList.add("db-wrong");
            let told = field.querySelector(":scope > .db-sentence");
            if (!told) {
                told = document.createElement("p");
                told.className = "db-sentence";
                told.setAttribute("role", "alert");
                field.append(told);
            }
            if (told.textContent !== sentence) {
                told.textContent = sentence;
            }
        }
    }

    /* Marks each setting that is not at its default, with a button that puts it back. */
    function markChanged() {
        const list = find("#db_page [data-db-changed]");
        const marks = list ? JSON.parse(list.dataset.dbChanged) : {};
        for (const old of all("#db_page .db-changed")) {
            if (!(old.id in marks)) {
                old.classList.remove("db-changed");
                old.querySelector(":scope > .db-reset")?.remove();
            }
        }
        for (const [id, [key, standard]] of Object.entries(marks)) {
            const field = find(`#${id}`);
            if (!field || field.querySelector(":scope > .db-reset")) {
                field?.classList.add("db-changed");
                continue;
            }
            const button = document.createElement("button");
            button.type = "button";
            button.className = "db-reset";
            button.textContent = "● reset";
            button.title = `Changed. The default is ${standard}.`;
            button.setAttribute("aria-label", `Reset to ${standard}`);
            button.addEventListener("click", () => reset(key));
            field.classList.add("db-changed");
            field.append(button);
        }
    }

    function reset(key) {
        const field = find("#db_reset_key :is(textarea, input)");
        field.value = key;
        field.dispatchEvent(new Event("input", {bubbles: true}));
        setTimeout(() => find("button#db_reset, #db_reset button")?.click(), 100);
    }

    /* Shows only the settings that have all the words; sections that are closed are opened meanwhile. */
    function search(field) {
        let opened = false;
        const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
        mark("searching", words.length > 0);
        for (const [id, texts] of Object.entries(JSON.parse(field.dataset.dbWords))) {
            const section = find(`#${id}`);
            const said = (one) => `${texts[one]} ${find(`#${one}`)?.textContent.toLowerCase()}`; // in any language
            const found = new Set(Object.keys(texts).filter((one) => words.every((word) => said(one).includes(word))));
            section.classList.toggle("db-not-found", found.size === 0);
            const head = section.querySelector("button.label-wrap, .label-wrap");
            const open = head?.classList.contains("open");
            if (words.length && found.size && !open) {
                head?.click();
                section.dataset.dbOpened = opened = "true";
            } else if (!words.length && open && section.dataset.dbOpened) {
                head.click();
            }
            if (!words.length) {
                delete section.dataset.dbOpened;
            }
            for (const one of Object.keys(texts)) {
                find(`#${one}`)?.classList.toggle("db-not-found", !found.has(one));
            }
        }
        if (opened) { // some releases of gradio make what is in a section when it opens
            setTimeout(search, 100, field);
        } else {
            markChanged();
        }
    }

    /* Asks the API for a change. Throws what a person can mend. */
    async function send(address, method, body) {
        const headers = {"X-Dreambooth-Token": token(), "Content-Type": "application/json"};
        const answer = await fetch(address, {method, headers, body: JSON.stringify(body)});
        if (!answer.ok) {
            throw new Error((await answer.json()).problems.join(" "));
        }
    }

    /* A caption was changed under its picture: it is written at once. */
    async function captioned({target}) {
        const {dbCaption: file, dbAddress: address} = target.dataset || {};
        if (!file) {
            return;
        }
        try {
            await send(address, "PUT", {file, text: target.value});
            target.blur();
            look();
        } catch (error) {
            silent(target.closest(".db-live"), error.message);
        }
    }

    /* A button of a view that asks the API for one thing: to go on from a state, or to export it. */
    async function asked(event) {
        const button = event.target.closest?.("#db_page [data-db-send]");
        if (!button) {
            return;
        }
        try {
            await send(button.dataset.dbSend, "POST", JSON.parse(button.dataset.dbBody));
            look();
        } catch (error) {
            silent(button.closest(".db-live"), error.message);
        }
    }

    /* The WebUI's own model says what the pictures show; each caption appears as it is written. */
    async function described(event) {
        const button = event.target.closest?.("#db_page [data-db-describe]");
        if (!button) {
            return;
        }
        const said = button.parentElement.querySelector("span");
        button.disabled = true;
        said.textContent = " describing them …";
        try {
            await send(button.dataset.dbAddress, "POST", {with: button.dataset.dbDescribe});
            said.textContent = " done";
            look();
        } catch (error) {
            said.textContent = ` ${error.message}`;
        }
        button.disabled = false;
    }

    function showMore(event) {
        const button = event.target.closest?.("#db_page [data-db-more]");
        if (button) {
            const place = button.closest(".db-live");
            place.dataset.dbShown = place.querySelectorAll(".db-tile").length + Number(button.dataset.dbMore);
            look();
        }
    }

    /* What destroys or hides work takes a second press. */
    function confirmTwice(event) {
        const button = event.target.closest?.("#db_discard, #db_delete, #db_page [data-db-twice]");
        if (!button || button.dataset.dbSure) {
            return;
        }
        event.stopImmediatePropagation();
        event.preventDefault();
        const label = button.textContent;
        button.dataset.dbSure = "yes";
        const again = window.dreamboothWords?.translated("Press again:") ?? "Press again:";
        button.textContent = `${again} ${label.trim().toLowerCase()}`;
        setTimeout(() => {
            delete button.dataset.dbSure;
            button.textContent = label;
        }, 4000);
    }

    /* gradio tells of choices and sliders; of text it tells only some ways of writing, depending on its release. */
    function typed(event) {
        if (event.target.closest?.("#db_page .db-setting")) {
            changed();
        } else if (event.target.matches?.("#db_page .db-search")) {
            search(event.target);
        }
    }

    function start() {
        document.addEventListener("input", typed, true);
        document.addEventListener("change", captioned, true);
        document.addEventListener("keydown", pressed);
        document.addEventListener("click", confirmTwice, true);
        document.addEventListener("click", showMore, true);
        document.addEventListener("click", asked);
        document.addEventListener("click", described, true);
        document.addEventListener("visibilitychange", look);
        new MutationObserver((changes) => {
            for (const {target, addedNodes} of changes) {
                const here = target.nodeType === 1 && target.closest?.("#db_page");
                if (!here || target.closest(".db-live")) {
                    continue;
                }
                for (const node of addedNodes) {
                    if (node.nodeType !== 1) {
                        continue;
                    }
                    if (node.matches(".db-live, :has(.db-live)")) {
                        look();
                    }
                }
            }
        }).observe(document.body, {childList: true, subtree: true});
        look();
    }

    if (document.readyState === "loading") {
        document.addEventListener("DOMContentLoaded", start);
    } else {
        start();
    }
    return {mark, changed, answered};
})();
window.dreamboothPage = dreamboothPage;
