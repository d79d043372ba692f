"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const PHONE = matchMedia("(max-width: 760px)").matches;
  const PAGE = PHONE ? 4 : 5;
  const ASPECT_GOOD = ["✓ right", "✓ unchanged"], ASPECT_BAD = ["✗ wrong", "✗ changed"];

  // ------------------------------------------------------------------------------ data
  async function read(id) {
    const text = $(id).textContent.trim();
    if (!text) return null;
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).json();
  }

  function fail(message) {
    $("failure").textContent = message;
    $("failure").hidden = false;
  }

  // ----------------------------------------------------------------------------- theme
  const THEMES = [["auto", "◐ auto", "as the system"], ["light", "☀ light", "light"], ["dark", "☾ dark", "dark"]];
  let theme = 0;

  function remembered() {
    try { return localStorage.getItem("lightning-edit-theme"); } catch { return null; } // refused for files by some browsers
  }

  function setTheme(number) {
    theme = number % THEMES.length;
    const [name, label, words] = THEMES[theme];
    if (name === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    $("theme").textContent = label;
    $("theme").setAttribute("aria-label", `Colours: ${words}`);
    try { localStorage.setItem("lightning-edit-theme", name); } catch { /* not remembered, then */ }
    paint();
  }

  const TEXT = ["axis_label_text_color", "major_label_text_color", "title_text_color"];

  function paint() {
    if (typeof Bokeh === "undefined") return;
    const style = getComputedStyle(document.documentElement);
    const soft = style.getPropertyValue("--soft").trim(), line = style.getPropertyValue("--line").trim();
    for (const drawing of Bokeh.documents) {
      for (const root of drawing.roots()) {
        for (const model of root.references()) {
          const values = {};
          for (const name of TEXT) if (name in model.properties) values[name] = soft;
          if ("grid_line_color" in model.properties) values.grid_line_color = line;
          if (model.type === "Text") values.text_color = soft;
          if (Object.keys(values).length) model.setv(values);
        }
      }
    }
  }

  // ---------------------------------------------------------------------------- charts
  const views = new Map(); // what is drawn in which element

  async function draw(element, item) {
    const old = views.get(element);
    if (old) {
      const gone = new Set([...old].map((view) => view.model.document));
      old.clear();
      Bokeh.documents.splice(0, Infinity, ...Bokeh.documents.filter((drawing) => !gone.has(drawing)));
    }
    element.replaceChildren();
    views.set(element, await Bokeh.embed.embed_item({ ...item, target_id: element.id }));
    paint();
  }

  // A finger cannot hover: a tap on a chart moves Bokeh's pointer there until the next touch.
  let tapped = null;

  function point(type, at, event) {
    const { clientX, clientY } = event;
    const common = { view: window, isPrimary: true, bubbles: true, composed: true }; // no view, no pageY
    at.dispatchEvent(new PointerEvent(type, { clientX, clientY, ...common }));
  }

  function listenToFingers() {
    addEventListener("pointerdown", (event) => {
      if (event.pointerType !== "touch" || !tapped) return;
      point("pointerout", tapped, event);
      tapped = null;
    }, true);
    addEventListener("pointerup", (event) => {
      const path = event.composedPath();
      if (event.pointerType !== "touch" || !path.some((e) => e.dataset?.chart)) return;
      tapped = path[0];
      setTimeout(() => point("pointermove", path[0], event), 50); // after the finger has left
    }, true);
  }

  async function charts() {
    listenToFingers();
    const data = await read("charts-data");
    if (!data) return;
    const waiting = new Set(document.querySelectorAll("[data-chart]"));
    const drawVisible = async () => { // a chart in a closed section has no width yet
      for (const element of [...waiting]) {
        if (!element.checkVisibility()) continue;
        waiting.delete(element);
        await draw(element, data.charts[element.dataset.chart]);
      }
    };
    for (const fold of document.querySelectorAll("details")) fold.addEventListener("toggle", drawVisible);
    await drawVisible();
    const choice = $("graph-choice");
    if (choice) {
      choice.addEventListener("change", () => draw($("ripple-graph"), data.graphs[Number(choice.value)]));
    }
  }

  // ------------------------------------------------------------------------- sections
  function unfold(target) {
    for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
    target?.querySelector(":scope > details.fold")?.setAttribute("open", "");
  }

  function folds() {
    if (PHONE) for (const fold of document.querySelectorAll("[data-closed-on-phone]")) fold.open = false;
    const follow = () => { if (location.hash) unfold($(decodeURIComponent(location.hash.slice(1)))); };
    addEventListener("hashchange", follow);
    for (const link of document.querySelectorAll('a[href^="#"]')) {
      link.addEventListener("click", () => unfold($(link.hash.slice(1)))); // also where the hash stays the same
    }
    addEventListener("beforeprint", () => document.querySelectorAll("details.fold").forEach((fold) => { fold.open = true; }));
    follow();
  }

  // ----------------------------------------------------------------------------- cases
  const COLUMNS = [
    ["edit", "Edit", "10%"], ["kind", "Kind", "11%"], ["question", "Question", "35%"], ["expected", "Answer", "11%"],
    ["before", "Before", "11%"], ["now", "Now", "11%"], ["verdict", "Verdict", "11%"],
  ];

  function cell(row, label, content) {
    const td = document.createElement("td");
    td.dataset.label = label;
    td.append(content);
    row.append(td);
    return td;
  }

  function isolated(text) {
    const element = document.createElement("bdi");
    element.textContent = text;
    return element;
  }

  function table(data) {
    const { texts, kinds, edits, runs, rows } = data;
    const size = rows.edit.length;
    const text = (column, i) => { const at = rows[column][i]; return at < 0 ? null : texts[at]; };
    const flag = (i, place) => Math.floor((rows.flags[i] % 27) / 3 ** place) % 3; // 0 no, 1 yes, 2 unknown
    const stays = (i) => Math.floor(rows.flags[i] / 27);
    const id = (i) => edits[rows.edit[i]][1];
    const written = rows.now.some((at) => at >= 0);
    const columns = COLUMNS.filter(([name]) => written || (name !== "before" && name !== "now"));
    const searched = new Array(size);
    const haystack = (i) => (searched[i] ??= [id(i), kinds[rows.kind[i]].replaceAll("_", " "), text("question", i),
      text("expected", i), text("before", i), text("now", i)].join("\n").toLowerCase());
    const value = {
      edit: (i) => rows.edit[i], kind: (i) => rows.kind[i], question: (i) => text("question", i),
      expected: (i) => text("expected", i), before: (i) => text("before", i) ?? "", now: (i) => text("now", i) ?? "",
      verdict: (i) => flag(i, 0) * 2 + stays(i),
    };
    let order = [null, 1], found = [], page = 0;

    const head = document.querySelector("#table thead tr");
    for (const [name, label, width] of columns) {
      const th = document.createElement("th");
      th.scope = "col";
      th.style.width = width;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = label;
      button.addEventListener("click", () => {
        order = order[0] === name && order[1] === 1 ? [name, -1] : [name, 1];
        for (const other of head.children) other.removeAttribute("aria-sort");
        th.setAttribute("aria-sort", order[1] === 1 ? "ascending" : "descending");
        refresh();
      });
      th.append(button);
      head.append(th);
    }

    function fill(select, names, all) {
      [all, ...names].forEach((name, number) => select.append(new Option(name.replaceAll("_", " "), number - 1)));
    }
    fill($("kind"), kinds, "all kinds");
    if ($("run")) fill($("run"), runs, "all runs");

    function show() {
      const body = document.querySelector("#table tbody");
      const begin = page * PAGE, slice = found.slice(begin, begin + PAGE);
      body.replaceChildren(...slice.map((i) => {
        const row = document.createElement("tr");
        const button = document.createElement("button");
        button.type = "button";
        button.className = "edit";
        button.title = "Show all questions of this edit";
        button.append(isolated(id(i)));
        button.addEventListener("click", () => { $("search").value = id(i); refresh(); });
        const first = cell(row, "Edit", button);
        if (runs.length > 1) {
          const small = document.createElement("small");
          small.className = "same";
          small.append(document.createElement("br"), isolated(runs[edits[rows.edit[i]][0]]));
          button.append(small);
        }
        cell(row, "Kind", kinds[rows.kind[i]].replaceAll("_", " "));
        cell(row, "Question", isolated(text("question", i)));
        cell(row, "Answer", isolated(text("expected", i)));
        if (written) {
          cell(row, "Before", isolated(text("before", i) ?? "–"));
          const now = cell(row, "Now", isolated(text("now", i) ?? "–"));
          if (rows.now[i] === rows.before[i]) now.className = "same";
        }
        const verdict = document.createElement("span");
        const good = flag(i, 0);
        verdict.className = `verdict ${["bad", "good", "unknown"][good]}`;
        verdict.textContent = good === 2 ? "not measured" : (good ? ASPECT_GOOD : ASPECT_BAD)[stays(i)];
        if (rows.change[i] !== null) verdict.title = `negative log probability of the answer: ${rows.change[i] > 0 ? "+" : ""}${rows.change[i]} nats a token`;
        cell(row, "Verdict", verdict);
        return row;
      }));
      const pages = Math.max(1, Math.ceil(found.length / PAGE));
      const n = found.length.toLocaleString("en"), all = size.toLocaleString("en");
      $("count").textContent = found.length === size ? `${all} questions` : `${n} of ${all} questions`;
      $("page").textContent = `page ${page + 1} of ${pages}`;
      $("previous").disabled = page === 0;
      $("next").disabled = page + 1 >= pages;
    }

    function refresh() {
      const words = $("search").value.toLowerCase().trim();
      const kind = Number($("kind").value), run = $("run") ? Number($("run").value) : -1;
      const wrong = $("wrong").checked, changed = $("changed").checked;
      found = [];
      for (let i = 0; i < size; i++) {
        if (kind >= 0 && rows.kind[i] !== kind) continue;
        if (run >= 0 && edits[rows.edit[i]][0] !== run) continue;
        if (wrong && flag(i, 0) !== 0) continue;
        if (changed && flag(i, 1) !== 1) continue;
        if (words && !haystack(i).includes(words)) continue;
        found.push(i);
      }
      const [by, way] = order;
      if (by) {
        const key = value[by];
        const compare = new Intl.Collator("en", { numeric: true }).compare;
        found.sort((a, b) => {
          const x = key(a), y = key(b);
          return way * (typeof x === "number" ? x - y : compare(x, y)) || a - b;
        });
      }
      page = 0;
      show();
    }

    let waiting = 0;
    $("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(refresh, 100); });
    for (const name of ["kind", "run", "wrong", "changed"]) $(name)?.addEventListener("change", refresh);
    $("filter").addEventListener("submit", (event) => { event.preventDefault(); refresh(); });
    $("previous").addEventListener("click", () => { page -= 1; show(); });
    $("next").addEventListener("click", () => { page += 1; show(); });
    refresh();
  }

  async function start() {
    folds();
    $("theme").addEventListener("click", () => setTheme(theme + 1));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
    setTheme(Math.max(0, THEMES.findIndex(([name]) => name === remembered())));
    if (typeof DecompressionStream === "undefined") {
      fail("This browser is too old for the charts and the table; any browser of 2023 or later shows them.");
      return;
    }
    const cases = await read("cases-data");
    if (cases) table(cases);
    await charts();
    document.documentElement.dataset.ready = "yes";
  }

  start().catch((error) => { fail(`The page could not be drawn: ${error}`); throw error; });
})();
