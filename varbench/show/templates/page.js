"use strict";
(async () => {
  const el = (tag, text, className) => {
    const made = document.createElement(tag);
    if (text !== undefined && text !== null) made.textContent = text; // never innerHTML: records hold strangers' strings
    if (className) made.className = className;
    return made;
  };
  const unpack = async (id) => {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  };
  const payload = await unpack("payload");
  const dark = matchMedia("(prefers-color-scheme: dark)");

  /* Charts: the still picture of one becomes live when it comes near; where that fails, and in print, the still stays. */
  const draw = async (place) => {
    const options = { actions: false, renderer: "svg", tooltip: { theme: dark.matches ? "dark" : "light" } };
    const live = el("div", null, "live");
    place.querySelector(".live")?.remove();
    place.dataset.drawn = "waiting";
    place.append(live);
    try {
      await vegaEmbed(live, payload.charts[place.dataset.chart], options);
      place.dataset.drawn = "yes";
    } catch (error) {
      console.error(`${place.dataset.chart}: ${error.message}`);
      live.remove();
      place.dataset.drawn = "failed";
    }
  };
  const places = [...document.querySelectorAll("[data-chart]")];
  const near = new IntersectionObserver((seen) => {
    for (const { isIntersecting, target } of seen) if (isIntersecting) { near.unobserve(target); draw(target); }
  }, { rootMargin: "900px" });
  places.forEach((place) => near.observe(place));
  dark.addEventListener("change", () => places.filter((place) => place.dataset.drawn).forEach(draw));

  /* Sorting. Missing values stay at the end whatever the direction. */
  const valueOf = (row, index) => {
    const cell = row.cells[index];
    return cell.dataset.sort ?? (cell.querySelector(".missing") ? undefined : cell.textContent);
  };
  const compare = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, undefined, { numeric: true }) : x - y;
  };
  document.querySelectorAll("table.sortable").forEach((table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, index) => head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        const [x, y] = [valueOf(a, index), valueOf(b, index)];
        if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
        return down ? compare(y, x) : compare(x, y);
      });
      table.tBodies[0].append(...rows);
    }));
  });

  /* Filtering: every word must occur in the row. */
  const words = document.getElementById("filter"), validity = document.getElementById("validity"), count = document.getElementById("count");
  const filter = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0, total = 0;
    document.querySelectorAll("table.sortable tbody tr").forEach((row) => {
      const text = `${row.cells[0].dataset.sort} ${row.textContent}`.toLowerCase();
      const right = !validity.value || (validity.value === "valid") !== row.classList.contains("doubted");
      row.hidden = !(right && wanted.every((word) => text.includes(word)));
      shown += !row.hidden; total += 1;
    });
    count.value = shown === total ? `${total} rows` : `${shown} of ${total} rows`;
  };
  if (words) { words.addEventListener("input", filter); validity.addEventListener("change", filter); filter(); }

  /* One row: its command, why figures are missing, its plan, its record. */
  const dialog = document.getElementById("row"), body = dialog.querySelector(".body");
  const scrolling = (text, label) => { // whatever scrolls must be reachable by keyboard
    const frame = el("pre", text);
    frame.tabIndex = 0; frame.setAttribute("role", "region"); frame.setAttribute("aria-label", label);
    return frame;
  };
  const ranges = (layers) => {
    const parts = [];
    for (const layer of layers) {
      const last = parts.at(-1);
      if (last && layer === last[1] + 1) last[1] = layer; else parts.push([layer, layer]);
    }
    return parts.map(([from, to]) => (from === to ? `${from}` : to === from + 1 ? `${from} ${to}` : `${from}–${to}`)).join(" ");
  };
  const tableOf = (headings, rows) => {
    const frame = el("div", null, "scroll"), table = el("table"), head = table.createTHead().insertRow();
    frame.tabIndex = 0; frame.setAttribute("role", "region"); frame.setAttribute("aria-label", headings.join(", "));
    for (const heading of headings) { const cell = el("th", heading); cell.scope = "col"; head.append(cell); }
    const inside = table.createTBody();
    for (const row of rows) { const line = inside.insertRow(); for (const cell of row) line.append(el("td", cell ?? "–")); }
    frame.append(table);
    return frame;
  };
  const units = (value, base, names) => {
    if (value === null || value === undefined) return "–";
    let i = 0;
    while (value >= base && i < names.length - 1) { value /= base; i += 1; }
    return `${value >= 100 || i === 0 ? Math.round(value) : value.toPrecision(3)} ${names[i]}`;
  };
  const spread = (values) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return low === high ? `${low}` : `${low} to ${high}`;
  };
  const planTable = (plan) => tableOf(
    ["scale", "samples", "backbone", "branches", "layers", "attention tokens", "FFN tokens", "reads", "kept", "FLOPs", "state", "predicted"],
    plan.steps.map((step) => [
      step.scales.join(" "), step.samples, step.backbone, step.branches.join(" "), ranges(step.calls.flatMap((run) => run.layers)),
      ...["attention_tokens", "ffn_tokens", "reads", "kept"].map((name) => spread(step.calls.map((run) => run[name]))),
      units(step.flops, 1000, ["", "k", "M", "G", "T", "P"]), units(step.state_peak_bytes, 1024, ["B", "KiB", "MiB", "GiB"]),
      step.predicted_seconds === null ? "–" : `${(step.predicted_seconds * 1e3).toPrecision(3)} ms`,
    ]));
  const section = (title, ...content) => body.append(el("h3", title), ...content);
  const whole = (record) => { // sections that rows share are stored once
    const made = { ...record };
    for (const name of payload.names) if (typeof made[name] === "number") made[name] = payload.shared[made[name]];
    return made;
  };
  const open = (index) => {
    const entry = payload.entries[index];
    dialog.querySelector("h2").textContent = entry.name;
    body.replaceChildren();
    if (entry.trouble) section("Not to be believed", el("p", entry.trouble));
    entry.records.forEach((which) => {
      const record = whole(payload.records[which]), plan = record.plan;
      if (entry.records.length > 1) body.append(el("h3", `Repeat: run ${record.run}, seed ${record.protocol.seed}`));
      section("Command line", scrolling(record.command, "Command line"));
      if (record.training) section("Training command", scrolling(record.training.command, "Training command"));
      if (record.reason) section("Why it ended", el("p", `${record.status}: ${record.reason}`));
      if (record.traceback || record.stderr_tail) section("What it wrote", scrolling(record.traceback || record.stderr_tail, "Output"));
      if (record.warnings.length) {
        const list = el("ul");
        for (const notice of record.warnings) list.append(el("li", notice.next_command ? `${notice.text} → ${notice.next_command}` : notice.text));
        section("Warnings", list);
      }
      const missing = Object.entries(record.missing);
      if (missing.length) section("Missing, and why", tableOf(["figure", "reason"], missing));
      if (plan && which === entry.records[0]) section(`Plan ${plan.digest.slice(0, 12)}`, planTable(plan));
      const raw = el("details"), text = scrolling("", "The whole record as JSON");
      raw.append(el("summary", "The whole record"), text);
      raw.addEventListener("toggle", () => { if (raw.open && !text.textContent) text.textContent = JSON.stringify(record, null, 1); });
      if (payload.trimmed) raw.append(el("p", "Raw samples and loss curves are in the file under records/ beside this page.", "soft"));
      section("Record", raw);
    });
    dialog.showModal();
    body.scrollTop = 0;
  };
  document.querySelectorAll("[data-entry]").forEach((button) => button.addEventListener("click", () => open(button.dataset.entry)));
  dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  document.documentElement.dataset.ready = "yes";
})();
