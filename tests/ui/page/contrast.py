"""Text and lines that are too faint for weak eyes, found in the browser."""

_COLOURS = """
    const brush = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const colour = (text) => {
        brush.clearRect(0, 0, 1, 1);
        brush.fillStyle = text;
        brush.fillRect(0, 0, 1, 1);
        const [red, green, blue, alpha] = brush.getImageData(0, 0, 1, 1).data;
        return [red, green, blue, alpha / 255];
    };
    const over = (top, under) => under.map((value, at) => at < 3 ? top[at] * top[3] + value * (1 - top[3]) : 1);
    const ground = (element) => {
        const layers = [];
        for (let one = element; one; one = one.parentElement) {
            layers.push(colour(getComputedStyle(one).backgroundColor));
        }
        const sheet = document.querySelector(".dark") ? [11, 15, 25, 1] : [255, 255, 255, 1];
        return layers.reduceRight((under, top) => over(top, under), sheet);
    };
    const light = (value) => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const luminance = ([red, green, blue]) =>
        0.2126 * light(red / 255) + 0.7152 * light(green / 255) + 0.0722 * light(blue / 255);
    const contrast = (top, under) => {
        const [dark, bright] = [luminance(over(top, under)), luminance(under)].sort((a, b) => a - b);
        return (bright + 0.05) / (dark + 0.05);
    };
"""

# Of what is no text and tells something, as a curve, a bar or the border of the field that is written in, what has less
# than WCAG's 3 to 1; with how many there are of each kind in view, so that none is passed over unseen.
FAINT_LINES = (
    "() => {"
    + _COLOURS
    + """
    const faint = [], seen = {};
    const look = (kind, element, shown, under) => {
        if (!element.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) {
            return;
        }
        seen[kind] = (seen[kind] || 0) + 1;
        const top = colour(shown), opacity = Number(getComputedStyle(element).opacity);
        const ratio = contrast([...top.slice(0, 3), top[3] * opacity], ground(under));
        if (ratio < 3) {
            faint.push(`${kind} ${ratio.toFixed(2)}`);
        }
    };
    const all = (kind) => document.querySelectorAll(`#db_page ${kind}`);
    const style = (element) => getComputedStyle(element);
    all(".db-live polyline").forEach(one => look("polyline", one, style(one).stroke, one.closest("figure")));
    all(".db-bar:not(.db-waits) i").forEach(one => look("bar", one, style(one).backgroundColor, one.parentElement));
    all(".db-bar.db-waits i").forEach(one =>
        look("waits", one, style(one).backgroundImage.match(/(?:color|rgb)\\([^)]*\\)/)[0], one.parentElement));
    all(".db-quality > i").forEach(one => look("best", one, style(one).backgroundColor, one.parentElement));
    all(".db-tile textarea:focus").forEach(one =>
        look("focus", one, style(one).borderTopColor, one.parentElement));
    return [faint, seen];
}"""
)

# Of each kind of text in view whose contrast with what is behind it is under WCAG's AA (4.5 to 1; 3 to 1 where it is
# large), a line. gradio's own buttons and tabs are left out: they are as the WebUI has them.
FAINT = (
    "() => {"
    + _COLOURS
    + """
    const faint = new Map(), walk = document.createTreeWalker(document.querySelector("#db_page"), NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const words = walk.currentNode.textContent.trim(), element = walk.currentNode.parentElement;
        const theirs = element.closest("button:not([class^=db-]), .tab-nav, script, style, svg, [disabled]");
        if (!words || theirs || !element.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) {
            continue;
        }
        const style = getComputedStyle(element), under = ground(element);
        const ratio = contrast(colour(style.color), under), size = parseFloat(style.fontSize);
        if (ratio < (size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5)) {
            faint.set(`${element.tagName}.${element.className}`, `${ratio.toFixed(2)}: ${words.slice(0, 60)}`);
        }
    }
    return [...faint].map(([kind, said]) => `${kind} ${said}`);
}"""
)
