/* The controls of the Dreambooth page: their names for who does not see them, the sentence under one that is wrong, the
   mark of one that is not at its default, and the search. */
"use strict";

(() => {
    const {find, all, translated} = dreamboothPage;
    const LEAST_LETTERS = 3; // of a search that asks beyond the settings
    const MOST_ELSEWHERE = 4; // sentences
    const toReset = []; // settings; the first is on its way
    const KEY = /^([a-z_]+(?:\.[a-z0-9_]+)+): /;

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

    /* What a button does, where its label does not say it; a label of no letters is no name for it. */
    function titleButtons() {
        const titles = JSON.parse(find("[data-db-titles]")?.dataset.dbTitles || "{}");
        for (const [id, words] of Object.entries(titles)) {
            const button = find(`button#${id}, #${id} button`);
            if (button && !button.title) {
                button.title = translated(words);
                if (!/[A-Za-z]/.test(button.textContent)) {
                    button.setAttribute("aria-label", button.title);
                }
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
                describe(old, "");
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
                told.id = `${id}_wrong`;
                field.append(told);
            }
            describe(field, told.id);
            if (told.textContent !== sentence) {
                told.textContent = sentence;
            }
        }
    }

    /* Says of the field of a control that it is wrong, and where it stands why; the list of all that is wrong has been
       read out already. Without a place that it is right. */
    function describe(control, place) {
        for (const field of control.querySelectorAll("input, textarea")) {
            for (const [name, value] of [["aria-invalid", place && "true"], ["aria-describedby", place]]) {
                value ? field.setAttribute(name, value) : field.removeAttribute(name);
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
        for (const [id, [key, label, standard]] of Object.entries(marks)) {
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
            button.setAttribute("aria-label", `Reset ${label} to ${standard}`);
            button.addEventListener("click", () => reset(key));
            field.classList.add("db-changed");
            field.append(button);
        }
    }

    /* Puts a setting back, after those that Python has not answered yet: gradio drops what is pressed meanwhile. */
    function reset(key) {
        if (toReset.push(key) === 1) {
            askReset();
        }
    }

    function askReset() {
        const field = find("#db_reset_key :is(textarea, input)");
        field.value = toReset[0];
        field.dispatchEvent(new Event("input", {bubbles: true}));
        setTimeout(dreamboothPage.press, 100, "db_reset");
    }

    dreamboothPage.onAnswered("db_reset", () => {
        toReset.shift();
        if (toReset.length) {
            askReset();
        }
    });

    /* Shows only the settings that have all the words; sections that are closed are opened meanwhile. */
    function search(field) {
        let opened = false;
        const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
        dreamboothPage.mark("searching", words.length > 0);
        for (const [id, texts] of Object.entries(JSON.parse(field.dataset.dbWords))) {
            const section = find(`#${id}`);
            const said = (one) => `${texts[one]} ${find(`#${one}`)?.textContent.toLowerCase() ?? ""}`; // in any language
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
        tellElsewhere(field, words);
        if (opened) { // some releases of gradio make what is in a section when it opens
            setTimeout(search, 100, field);
        } else {
            markChanged();
        }
    }

    /* What is looked for and is no setting of this tab: where it is, or why it is not here. */
    function tellElsewhere(field, words) {
        const known = words.join("").length < LEAST_LETTERS ? [] : JSON.parse(field.dataset.dbElsewhere);
        const found = known.filter(([names]) => words.every((word) => names.includes(word)));
        const place = field.parentElement.querySelector(".db-known-elsewhere");
        place.hidden = !found.length;
        place.replaceChildren(...found.slice(0, MOST_ELSEWHERE).map(([, sentence]) => {
            const line = document.createElement("p");
            line.textContent = sentence;
            return line;
        }));
    }

    /* gradio tells of choices and sliders; of text it tells only some ways of writing, depending on its release. */
    function typed(event) {
        if (event.target.closest?.("#db_page .db-setting")) {
            dreamboothPage.changed();
        } else if (event.target.matches?.("#db_page .db-search")) {
            search(event.target);
        } else if (event.target.matches?.("#db_page .db-own-words input")) {
            setTimeout(() => event.target.dispatchEvent(new KeyboardEvent("keyup"))); // gradio 3 misses what is pasted
        }
    }

    dreamboothPage.onDrawn(() => {
        nameFields();
        titleButtons();
        markProblems();
        markChanged();
    });
    document.addEventListener("input", typed, true);
    document.addEventListener("keydown", pressed);
})();
