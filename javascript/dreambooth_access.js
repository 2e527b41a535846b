/* What the Dreambooth page does for a keyboard and a screen reader while it changes by itself. */
"use strict";

const dreamboothAccess = (() => {
    const small = window.matchMedia("(max-width: 899px)");
    const {find} = dreamboothPage;

    /* Says something to who does not see the page. */
    function tell(words) {
        const line = find("#db_told p");
        if (line && words) {
            line.textContent = words;
        }
    }

    /* What can have the focus in a view, but for captions. */
    const pressable = (section) => Array.from(section.querySelectorAll("a, button, summary"));

    /* Changes a section of a view, or takes it away; the keyboard stays where it was as far as that is there. */
    function keepingFocus(place, section, change) {
        const focused = section.contains(document.activeElement) ? document.activeElement : null;
        const at = focused && pressable(section).indexOf(focused);
        change();
        if (focused) {
            section.isConnected ? focusAgain(place, section, focused, at) : rest(place);
        }
    }

    /* What stands for the link or button that had the focus before a section was drawn anew gets it: the same one, or
       the one in its place. */
    function focusAgain(place, section, focused, at) {
        const there = pressable(section);
        const one = there.find((found) => known(found) === known(focused)) ?? there[Math.min(at, there.length - 1)];
        one ? one.focus({preventScroll: true}) : rest(place);
    }

    /* By what a link or button is known again. */
    function known(element) {
        const {dbSure, ...own} = element.dataset; // its words may ask for a second press
        return JSON.stringify([element.tagName, own, element.ariaLabel ?? element.textContent]);
    }

    /* The keyboard goes on from a view where the button is gone that had the focus. */
    function rest(place) {
        place.tabIndex = -1;
        place.focus({preventScroll: true});
    }

    /* In a small window the run stands above the tabs (style.css), and the keyboard comes to it first there too. */
    function placeRun() {
        const run = find("#db_run_column"), columns = run?.parentElement;
        if (columns && (columns.firstElementChild === run) !== small.matches) {
            columns[small.matches ? "prepend" : "append"](run);
        }
    }

    dreamboothPage.onDrawn(placeRun);
    small.addEventListener("change", placeRun);
    return {keepingFocus, tell};
})();
window.dreamboothAccess = dreamboothAccess;
