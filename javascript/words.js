/* The WebUI's localisation for texts that hold numbers or names, which it leaves as they are: it knows whole texts only.
   In a localisation file # stands for them, as in "# pictures" (ui/page/wording.py writes all of them). */
"use strict";

const dreamboothWords = (() => {
    const NUMBER = "([^ ]*\\d[^ ]*(?: [A-Za-z]{1,3})?)"; // with its unit
    const ANYTHING = "(.+?)";
    const LONG = 9; // letters that say enough for anything to stand between them
    const BEGUN = /^[A-Za-z](?:.*[A-Za-z]){5}/; // and what says enough for anything to follow it
    const PIECES = " · ";

    let patterns = null;
    const written = new WeakMap(); // what was put into a text that changes in place, or it would be translated for ever

    const known = () => window.localization || {};

    function holed() {
        patterns ??= Object.keys(known()).filter((key) => key.includes("#") && known()[key]).map((key) => {
            const hole = key.replace(/[^A-Za-z]/g, "").length >= LONG || BEGUN.test(key) ? ANYTHING : NUMBER;
            const parts = key.split("#").map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
            return [new RegExp(`^${parts.join(hole)}$`), known()[key]];
        });
        return patterns;
    }

    /* A text in the WebUI's language; itself where no translation is known. */
    function translated(text) {
        const said = text.trim();
        if (!said || !Object.keys(known()).length) {
            return text;
        }
        if (known()[said]) {
            return text.replace(said, () => known()[said]);
        }
        if (said.includes(PIECES)) {
            return text.replace(said, () => said.split(PIECES).map(translated).join(PIECES));
        }
        const about = aboutSetting(said);
        if (about !== said) {
            return text.replace(said, () => about);
        }
        for (const [pattern, words] of holed()) {
            const found = said.match(pattern);
            if (found) {
                let at = 1;
                return text.replace(said, () => words.replace(/#/g, () => translated(found[at++] ?? "")));
            }
        }
        return text;
    }

    /* `Lora Rank: it is empty; give a number.`, and `Concept 1, Class Prompt: ...`: the sentence is known without it. */
    function aboutSetting(said) {
        const at = said.indexOf(": ");
        const sentence = said.slice(at + 2);
        const words = at > 0 ? translated(sentence) : sentence;
        if (words === sentence) {
            return said;
        }
        return `${said.slice(0, at).split(/(?<=,) /).map(translated).join(" ")}: ${words}`;
    }

    function translateUnder(node) {
        const walk = document.createTreeWalker(node, NodeFilter.SHOW_TEXT);
        for (let text = node.nodeType === 3 ? node : walk.nextNode(); text; text = walk.nextNode()) {
            if (!text.parentElement?.closest("textarea, pre, script, style")) {
                const words = translated(text.textContent);
                if (words !== text.textContent) {
                    text.textContent = words;
                }
            }
        }
        for (const element of node.nodeType === 1 ? [node, ...node.querySelectorAll("*")] : []) {
            for (const name of ["title", "aria-label", "placeholder", "alt"]) {
                const words = element.getAttribute(name);
                if (words && translated(words) !== words) {
                    element.setAttribute(name, translated(words));
                }
            }
        }
    }

    function translateChanged(text) {
        if (text.parentElement?.closest("#db_page") && written.get(text) !== text.textContent) {
            translateUnder(text);
            written.set(text, text.textContent);
        }
    }

    function start() {
        if (!Object.keys(known()).length) {
            return;
        }
        new MutationObserver((changes) => {
            for (const {addedNodes, target, type} of changes) {
                if (type === "characterData") {
                    translateChanged(target);
                }
                for (const node of addedNodes) {
                    const element = node.nodeType === 1 ? node : node.parentElement;
                    if (element?.closest("#db_page")) {
                        translateUnder(node);
                    } else if (node.nodeType === 1 && node.querySelector("#db_page")) {
                        translateUnder(node.querySelector("#db_page"));
                    }
                }
            }
        }).observe(document.body, {childList: true, characterData: true, subtree: true});
    }

    document.addEventListener("DOMContentLoaded", start);
    return {translated};
})();
window.dreamboothWords = dreamboothWords;
