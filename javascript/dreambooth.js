/* Keeps the Dreambooth page current. It draws what /dreambooth/page/live says of the folders and holds nothing itself:
   no value of a control is read or written here. What belongs to the controls is in dreambooth_form.js, the buttons of
   what is drawn are in dreambooth_buttons.js, and what only the keyboard and a screen reader want in
   dreambooth_access.js. */
"use strict";

const dreamboothPage = (() => {
    const SAVE = "db_save_draft";
    const DRAFT_MS = 600; // quiet time after which a change is saved
    const GLANCE_MS = 250; // between two glances at which views are due
    const RUNNING_MS = 1000;
    const IDLE_MS = 4000;
    const LINE_PIXELS = 20; // a log whose last line is in view is followed
    const SILENT_MS = 10000; // a WebUI that is starting is disturbed by requests

    let draftTimer = null;
    const onTheWay = new Set(); // what Python was asked for by those buttons and has not answered yet
    const again = new Set(); // of them those that were pressed once more
    let lookTimer = null;
    let lastState = null;
    let turn = 0; // counts what this page asks of Python: what was looked up meanwhile may be older or newer
    let asking = false;
    let knownSettings = null;
    const followers = [];
    const awaited = {}; // by button, what is to be done when Python has answered it

    const root = () => (typeof gradioApp === "function" ? gradioApp() : document);
    const find = (selector) => root().querySelector(selector);
    const all = (selector) => Array.from(root().querySelectorAll(selector));

    function press(name) {
        find(`button#${name}, #${name} button`)?.click();
    }

    /* Presses a button that calls `answered` with its name. Gradio drops what is pressed before the last answer came: it
       is pressed again then. */
    function ask(name) {
        (onTheWay.has(name) ? again : onTheWay).add(name);
        press(name);
    }

    /* Words in the WebUI's language, for what words.js does not see being written. */
    const translated = (words) => window.dreamboothWords?.translated(words) ?? words;

    function token() {
        return find("[data-db-token]")?.dataset.dbToken || "";
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
        asks();
        mark("unsaved", true);
        clearTimeout(draftTimer);
        draftTimer = setTimeout(save, DRAFT_MS);
    }

    function save() {
        draftTimer = null;
        ask(SAVE);
    }

    /* Python has answered: what it was sent is saved, or the reason why not is on the page. */
    function answered(name) {
        if (again.delete(name)) {
            setTimeout(() => press(name));
        } else {
            onTheWay.delete(name);
        }
        if (draftTimer === null && !onTheWay.has(SAVE)) {
            mark("unsaved", false);
            asking = false;
        }
        turn += 1;
        knownSettings = null;
        awaited[name]?.();
        followed();
        look();
    }

    /* Python is about to be asked for something that may change the settings. */
    function asks() {
        asking = true;
        turn += 1;
    }

    /* Has Python say what is newer when the model's settings were changed, and not from here. */
    function notice(model, settings, asked) {
        if (asking || asked !== turn || !settings) {
            return;
        }
        const now = `${model} ${settings}`;
        if (knownSettings?.startsWith(`${model} `) && knownSettings !== now) {
            ask("db_compare");
        }
        knownSettings = now;
    }

    /* What is to be done whenever the page may have changed. */
    function onDrawn(follower) {
        followers.push(follower);
    }

    function onAnswered(name, then) {
        awaited[name] = then;
    }

    function followed() {
        followers.forEach((follower) => follower());
    }

    /* Looks at all views at once and then at each again and again. */
    function look() {
        clearTimeout(lookTimer);
        lookTimer = setTimeout(keepLooking, 50, true);
    }

    function keepLooking(atAll = false) {
        clearTimeout(lookTimer);
        if (find("#db_page") && !document.hidden) {
            const due = visible().filter((place) => atAll || Date.now() >= (place.dbDue ?? 0));
            if (due.length) {
                followed();
            }
            due.forEach(lookAt);
        }
        lookTimer = setTimeout(keepLooking, GLANCE_MS);
    }

    /* Looks at one view. A slow one, such as of pictures that the engine reads, keeps no other waiting; what it is asked
       for meanwhile it is asked for when it has answered, but for another model's, which has its place by then. */
    async function lookAt(place) {
        const about = subject(place);
        if (place.dbAbout !== about) {
            Object.assign(place, {dbAbout: about, dbWas: undefined});
        } else if (place.dbDue === Infinity) {
            place.dbAgain = true;
            return;
        }
        place.dbDue = Infinity;
        place.dbAgain = false;
        try {
            await refresh(place, about);
        } finally {
            if (place.dbAbout === about) {
                place.dbDue = place.dbAgain ? 0 : Date.now() + rest(place);
            }
        }
    }

    /* What a place shows: gradio 6 keeps the place and changes what it is of. */
    const subject = ({dataset: {dbLive, dbModel, dbRow}}) => JSON.stringify([dbLive, dbModel, dbRow]);

    /* How long a view is left as it is. */
    function rest(place) {
        if (place.querySelector(":scope > .db-silent")) {
            return SILENT_MS;
        }
        return visible().some(({dbWas}) => dbWas === "running" || dbWas === "queued") ? RUNNING_MS : IDLE_MS;
    }

    /* The places to fill: each once, though gradio 3 gives two elements the same id. */
    function visible() {
        return all(".db-live").filter((place) => place.dataset.dbLive === "run" || place.offsetParent !== null);
    }

    async function refresh(place, about) {
        const asked = turn;
        const {fresh, problem} = await lookUp(place);
        if (!place.isConnected || subject(place) !== about) {
            return; // another model is shown by now
        }
        if (problem) {
            return note(place, "db-silent", problem);
        }
        place.querySelector(":scope > .db-silent")?.remove();
        if (place.dataset.dbLive === "run") {
            notice(place.dataset.dbModel, fresh.dataset.dbSettings, asked);
        }
        draw(place, fresh);
    }

    /* A view as it is now, or why it is not known. */
    async function lookUp({dataset: {dbLive: view, dbModel: model, dbRow: row = 0, dbShown: shown}}) {
        const query = new URLSearchParams({view, model, row, ...(shown && {shown})});
        let answer;
        try {
            answer = await fetch(`dreambooth/page/live?${query}`, {headers: {"X-Dreambooth-Token": token()}});
        } catch {
            return {problem: "The WebUI does not answer. A run goes on without it."};
        }
        if (answer.status === 401 || answer.status === 403) {
            return {problem: "The WebUI was started anew; reload this page."};
        }
        if (!answer.ok) {
            return {problem: await refusal(answer)};
        }
        const read = document.createElement("template");
        read.innerHTML = await answer.text();
        return {fresh: read.content.firstElementChild};
    }

    /* Why the WebUI refused what it was asked for; what stands between may answer with a page of its own. */
    async function refusal(answer) {
        const said = await answer.json().catch(() => null);
        return said?.problems?.join(" ") ?? `The WebUI answered with an error (${answer.status}).`;
    }

    /* A sentence above a view, in the place of the last one of its kind; empty to take it away. */
    function note(place, kind, words) {
        let told = place.querySelector(`:scope > .${kind}`);
        if (!told) {
            told = document.createElement("p");
            told.className = `${kind} db-note`;
            told.setAttribute("role", "status");
            place.prepend(told);
        }
        told.textContent = words;
        told.hidden = !words;
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
            const wasOpen = old.querySelector("details")?.open;
            const readAt = readingPlace(old.querySelector("details pre"));
            for (const picture of section.querySelectorAll("[data-db-src]")) {
                picture[picture.tagName === "A" ? "href" : "src"] = picture.dataset.dbSrc;
            }
            const dark = document.querySelector("body.dark, .dark #db_page, #db_page .dark") !== null;
            for (const sheet of section.querySelectorAll("iframe")) {
                sheet.srcdoc = sheet.srcdoc.replace("(prefers-color-scheme: dark)", dark ? "all" : "not all");
            }
            dreamboothAccess.keepingFocus(place, old, () => old.replaceChildren(...section.childNodes));
            const details = old.querySelector("details");
            if (wasOpen && details) { // a new run has no log yet
                details.open = true;
                const log = details.querySelector("pre");
                log.scrollTop = readAt ?? log.scrollHeight;
            }
        }
        const kept = new Set(Array.from(fresh.children, (section) => section.dataset.dbPart));
        for (const old of place.querySelectorAll(":scope > section")) {
            if (!kept.has(old.dataset.dbPart)) {
                dreamboothAccess.keepingFocus(place, old, () => old.remove());
            }
        }
        const state = fresh.dataset.dbState;
        if (place.dataset.dbLive === "download") {
            if (state === "running" && place.dbWas !== "running") {
                place.dbWanted = wantedModel();
            } else if (state === "done" && place.dbWas === "running" && place.dbWanted === wantedModel()) {
                press("db_create"); // the model can be made now
            }
        }
        if (["model", "export"].includes(place.dataset.dbLive) && place.dbWas === "running" && state !== "running") {
            lookAgain(); // a file was exported
        }
        if (place.dataset.dbLive !== "run" && place.dbWas === "running" && state !== "running") {
            dreamboothAccess.tell(ending(place));
        }
        place.dbWas = state;
        if (place.dataset.dbLive === "run") {
            ran(place, state);
        }
        followed();
    }

    /* Where somebody reads a log above its end; nothing for one that is followed. */
    function readingPlace(log) {
        const isAtEnd = !log || log.scrollHeight - log.scrollTop - log.clientHeight < LINE_PIXELS;
        return isAtEnd ? undefined : log.scrollTop;
    }

    /* A log that is unfolded shows its end. */
    function unfolded({target}) {
        const log = target.closest?.("#db_page .db-live summary")?.nextElementSibling;
        if (log?.matches("pre")) {
            requestAnimationFrame(() => {
                log.scrollTop = log.scrollHeight;
            });
        }
    }

    /* What a view says of its end, where nothing in it speaks by itself. */
    function ending(place) {
        return place.querySelector(".db-problems:not([role]), .db-good:not([role])")?.textContent.trim();
    }

    /* What the Model tab is about to make: another than was fetched is not made unasked. */
    function wantedModel() {
        const fields = all("#db_new_source input, :is(#db_new_name, #db_new_revision) :is(input, textarea)");
        return fields.map(({value}) => value).filter(Boolean).join("\n"); // the last is not there until it is unfolded
    }

    /* The buttons follow the state of the run; when it ends, what hangs on its results is read anew. */
    function ran(place, state) {
        const model = place.dataset.dbModel;
        const engineFirst = state === "unready" || state === "working"; // with or without a model
        mark("state", model || engineFirst ? state : "nothing");
        const now = `${model} ${state}`;
        if (lastState === `${model} running` && lastState !== now) {
            lookAgain();
        }
        if (lastState?.startsWith(`${model} `) && lastState !== now) {
            const [run, how] = place.querySelector("h3")?.childNodes || [];
            dreamboothAccess.tell(how && `${run.textContent.trim()}: ${how.textContent.trim()}`);
        }
        lastState = now;
    }

    function lookAgain() {
        ask("db_look_again");
    }

    function start() {
        document.addEventListener("click", unfolded);
        document.addEventListener("visibilitychange", look);
        document.addEventListener("click", ({target}) => {
            if (target.closest?.("#db_tabs :is(.tab-nav button, [role=tab])")) {
                look(); // what comes into view is as old as the last look at it
            }
        });
        document.addEventListener("click", ({target}) => {
            if (target.closest?.("#db_page :is(button, fieldset)")) {
                asks();
                setTimeout(() => { asking = draftTimer !== null; }, SILENT_MS); // not all of them ask
            }
        }, true);
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
    return {
        find, all, press, translated, token, mark, changed, ask, answered, onAnswered,
        look, lookAgain, onDrawn, note, refusal,
    };
})();
window.dreamboothPage = dreamboothPage;
