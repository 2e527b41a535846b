/* Choosing by hand what is kept of a picture: over it lies the frame that training cuts out, whose middle goes where one
   clicks, or where the arrow keys lead, as far as the picture lets it. What is to be drawn is in the button of each
   picture (ui/page/crop_view.py); what is chosen is written soon after. */
"use strict";

(() => {
    const {onDrawn, translated} = dreamboothPage;
    const QUIET_MS = 300; // after the last move
    const STEP = 0.02, LARGE_STEP = 0.1; // of the picture's side
    const ZOOM_STEP = 0.1;
    const ALL = 0.999; // of a side: there is no room to move
    const SIDES = [0, 1]; // across and down
    const ARROWS = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, -1], ArrowDown: [1, 1]};
    const WORDS = {
        closer: "Closer",
        help: "Click the middle of what matters, or move it with the arrow keys. Escape closes this.",
        forget: "Automatic",
        former: "Previous picture",
        next: "Next picture",
        close: "Done",
    };
    const EDITOR = `
        <div class="db-crop-picture" tabindex="0" role="application" aria-describedby="db_crop_said db_crop_help">
            <img alt="" draggable="false"><i></i><b></b>
        </div>
        <div class="db-crop-side">
            <h4></h4>
            <p id="db_crop_said"></p>
            <label><span data-db-says="closer"></span><input type="range" min="1" step="0.05"></label>
            <p class="db-quiet" id="db_crop_help" data-db-says="help"></p>
            <p class="db-crop-buttons">
                <button type="button" class="db-more" data-db-says="forget"></button>
                <button type="button" class="db-more" data-db-says="former"></button>
                <button type="button" class="db-more" data-db-says="next"></button>
                <button type="button" class="db-more" data-db-says="close"></button>
            </p>
        </div>`;

    /* {element, view, about, point, waits}: the picture that is open, what the page knows of it, what was chosen, and
       whether the page does not know that yet. */
    let open = null;
    let timer = null; // until what was chosen is written

    const within = (value, low, high) => Math.min(Math.max(value, low), high);
    const about = (button) => JSON.parse(button.dataset.dbCrop);
    const buttons = () => Array.from(open.view.querySelectorAll("[data-db-crop]"));
    const buttonOf = (file) => buttons().find((button) => about(button).file === file);
    const part = (selector) => open.element.querySelector(selector);
    const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

    /* Where the crop begins and how long it is, across and down, in pixels, as core/crops.py has it; nothing where only
       the check knows. */
    function frame() {
        const {size, window, most, automatic} = open.about;
        if (!open.point) {
            return automatic && SIDES.map((n) => [automatic[n], automatic[n + 2] - automatic[n]]);
        }
        const at = [open.point.x, open.point.y], tighter = Math.min(open.point.zoom, most);
        return SIDES.map((n) => {
            const length = window[n] / tighter;
            return [within(at[n] * size[n] - length / 2, 0, size[n] - length), length];
        });
    }

    /* What is kept, in words. */
    function said(kept) {
        const {size, words, bucket, most} = open.about, percent = (share) => Math.round(100 * share);
        const sentences = [translated(words)];
        if (open.point) {
            const {x, y, zoom} = open.point;
            sentences[0] = translated(`By hand: around ${percent(x)} % from the left, ${percent(y)} % from the top.`);
            if (zoom > 1) {
                sentences.push(translated(`${Math.min(zoom, most).toFixed(2)} times closer.`));
            }
        }
        if (kept) {
            const [[left, right], [top, bottom]] = kept.map(([begin, length], n) =>
                [percent(begin / size[n]), percent((begin + length) / size[n])]);
            sentences.push(translated(`Kept: ${left} to ${right} % of the width, ${top} to ${bottom} % of the height.`));
        }
        sentences.push(translated(`Trained at ${bucket}.`));
        return sentences.join(" ");
    }

    function draw() {
        const {size, most, broken} = open.about, kept = frame(), line = part("i"), cross = part("b");
        line.hidden = !kept;
        if (kept) {
            const [[left, width], [top, height]] = kept.map((side, n) => side.map((pixels) => 100 * pixels / size[n]));
            Object.assign(line.style, {left: `${left}%`, top: `${top}%`, width: `${width}%`, height: `${height}%`});
        }
        cross.hidden = !open.point;
        if (open.point) {
            Object.assign(cross.style, {left: `${100 * open.point.x}%`, top: `${100 * open.point.y}%`});
        }
        const slider = part("input"), zoom = Math.min(open.point?.zoom ?? 1, most);
        if (document.activeElement !== slider) {
            slider.value = zoom;
        }
        slider.setAttribute("aria-valuetext", translated(`${zoom.toFixed(2)} times closer.`));
        slider.parentElement.hidden = most < 1 + ZOOM_STEP;
        part("[data-db-says=forget]").hidden = !open.point && !broken;
        part("#db_crop_said").textContent = said(kept);
    }

    /* Opens a picture above the others. */
    function show(button) {
        finish();
        open?.element.remove();
        const view = button.closest(".db-live"), element = document.createElement("div");
        element.className = "db-crop";
        element.innerHTML = EDITOR;
        view.querySelector(":scope > section").before(element);
        open = {element, view, about: about(button)};
        open.point = open.about.point;
        for (const one of element.querySelectorAll("[data-db-says]")) {
            one.textContent = translated(WORDS[one.dataset.dbSays]);
        }
        const {file, picture, size, most} = open.about, surface = part(".db-crop-picture");
        part("h4").textContent = file;
        surface.setAttribute("aria-label", `${translated("Crop")} ${file}`);
        surface.style.setProperty("--db-shape", size[0] / size[1]);
        part("img").src = picture;
        Object.assign(part("input"), {max: most, ariaLabel: translated(WORDS.closer)});
        for (const one of element.querySelectorAll("[data-db-says=former], [data-db-says=next]")) {
            one.hidden = buttons().length < 2;
        }
        draw();
        surface.focus({preventScroll: true});
        element.scrollIntoView({block: "nearest"});
    }

    function close() {
        finish();
        const button = buttonOf(open.about.file);
        open.element.remove();
        open = null;
        button?.focus();
    }

    /* The picture before or after this one; past the end the first. */
    function turn(by) {
        const there = buttons(), now = there.indexOf(buttonOf(open.about.file));
        show(there[(now + by + there.length) % there.length]);
    }

    function choose({x, y, zoom}) {
        const rounded = (value) => Math.round(value * 1e4) / 1e4;
        open.point = {x: rounded(within(x, 0, 1)), y: rounded(within(y, 0, 1)), zoom: rounded(zoom)};
        open.waits = true;
        draw();
        clearTimeout(timer);
        timer = setTimeout(finish, QUIET_MS);
    }

    /* The middle of what is kept, in shares of the picture. */
    function middle() {
        const kept = frame(), {size} = open.about;
        const [x, y] = kept ? kept.map(([begin, length], n) => (begin + length / 2) / size[n]) : [0.5, 0.5];
        return {x, y, zoom: open.point?.zoom ?? 1};
    }

    /* Moves the crop across (0) or down (1), if there is room. */
    function move(n, by) {
        const kept = frame(), share = kept ? kept[n][1] / open.about.size[n] : 0;
        if (share < ALL) {
            const from = middle(), key = "xy"[n];
            choose({...(open.point ?? from), [key]: within(from[key] + by, share / 2, 1 - share / 2)});
        }
        tell();
    }

    function zoom(times) {
        choose({...(open.point ?? middle()), zoom: within(times, 1, open.about.most)});
    }

    function tell() {
        dreamboothAccess.tell(said(frame()));
    }

    /* Writes what was chosen, if it is not written yet. */
    function finish() {
        if (timer !== null) {
            clearTimeout(timer);
            timer = null;
            const {address, file, folder} = open.about;
            send("PUT", address, {file, folder, ...open.point});
        }
    }

    /* Asks for it; where it is refused, what was chosen before holds. */
    async function send(method, address, body) {
        const asked = open;
        const answer = await dreamboothButtons.change(asked.view, address, method, body);
        if (!answer && open === asked && timer === null) {
            open.waits = false;
            open.point = open.about.point;
            draw();
        }
    }

    function forget() {
        const {address, file, folder} = open.about;
        clearTimeout(timer);
        timer = open.point = null;
        open.waits = true;
        draw();
        tell();
        part(".db-crop-picture").focus({preventScroll: true});
        send("DELETE", `${address}?${new URLSearchParams({file, folder})}`, {});
    }

    /* What is drawn of the picture may be another now, such as its shape; nothing of it where it is gone. */
    function follow() {
        if (!open) {
            return;
        }
        const button = open.view.isConnected && open.element.isConnected && buttonOf(open.about.file);
        if (!button) {
            finish();
            open.element.remove();
            open = null;
            return;
        }
        const now = about(button);
        open.waits &&= !same(now.point, open.point);
        if (!same(now, open.about)) {
            open.about = now;
            open.point = open.waits ? open.point : now.point;
            part("input").max = now.most;
            draw();
        }
    }

    const DO = {forget, close, former: () => turn(-1), next: () => turn(1)};

    function pressed({target}) {
        const button = target.closest?.("#db_page [data-db-crop]"), own = target.closest?.(".db-crop button");
        if (button) {
            show(button);
        } else if (own && open) {
            DO[own.dataset.dbSays]();
        }
    }

    /* A click on the picture, or a mouse that moves over it with its button down. */
    function pointed(event) {
        const surface = event.target.closest?.(".db-crop-picture");
        const drags = event.pointerType === "mouse" && event.buttons === 1;
        if (!open || !surface || (event.type !== "click" && !drags)) {
            return;
        }
        const {left, top, width, height} = surface.getBoundingClientRect();
        const x = (event.clientX - left) / width, y = (event.clientY - top) / height;
        choose({x, y, zoom: open.point?.zoom ?? 1});
        if (event.type === "click") {
            tell();
        }
    }

    function typed(event) {
        if (!open || !event.target.closest?.(".db-crop") || event.ctrlKey || event.metaKey || event.altKey) {
            return; // those are the browser's own, such as what makes the whole page larger
        }
        const onPicture = event.target.matches(".db-crop-picture");
        if (event.key === "Escape") {
            close();
        } else if (onPicture && ARROWS[event.key]) {
            const [n, way] = ARROWS[event.key];
            move(n, way * (event.shiftKey ? LARGE_STEP : STEP));
        } else if (onPicture && ["+", "=", "-"].includes(event.key)) {
            zoom((open.point?.zoom ?? 1) + (event.key === "-" ? -ZOOM_STEP : ZOOM_STEP));
            tell();
        } else {
            return;
        }
        event.preventDefault();
    }

    function slid({target}) {
        if (open && target.matches?.(".db-crop input")) {
            zoom(Number(target.value));
        }
    }

    onDrawn(follow);
    document.addEventListener("click", pressed);
    document.addEventListener("click", pointed);
    document.addEventListener("pointermove", pointed);
    document.addEventListener("keydown", typed);
    document.addEventListener("input", slid);
})();
