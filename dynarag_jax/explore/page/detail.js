// One question in full. Texts are anybody's: they are only ever put in as text.

export function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
  return node;
}

export const number = (value, digits = 2) => (value === null || value === undefined ? "–"
  : Number(value).toFixed(digits).replace("-", "−"));
export const percent = (p) => (p >= 0.995 && p < 1 ? ">99 %" : p > 0 && p < 0.005 ? "<1 %"
  : `${Math.round(100 * p)} %`);

export function chips(list, needed) {
  if (list === null) return h("span", { class: "quiet" }, "not recorded");
  if (!list.length) return h("span", { class: "chip none" }, "None");
  return h("span", { class: "chips" }, list.map((i) =>
    h("span", { class: needed && needed.has(i) ? "chip needed" : "chip" }, `[${i}]`)));
}

function bar(share, cls = "") {
  const node = h("span", { class: `bar ${cls}` });
  node.style.width = `${Math.max(100 * share, 0.5)}%`;
  return node;
}

function fact(name, value) {
  return value === null ? null : [h("dt", {}, name), h("dd", {}, value)];
}

function systemCard(system, letter, needed, asked, ask) {
  const label = letter === "a" ? "Before" : "After";
  const steps = h("button", { type: "button", disabled: !system.model, "data-steps": letter,
    title: system.model ? "computed by the run's model, at temperature 1" : system.why,
    onclick: () => ask(system.name, system.list || []) }, "Steps");
  return h("div", { class: `card ${letter}` },
    h("div", { class: "top" }, h("h3", {}, `${label}: ${system.name}`),
      system.list === null || system.failed ? null : steps),
    system.failed ? h("p", { class: "bad" }, `failed: ${system.failed}`) : chips(system.list, needed),
    h("dl", { class: "facts" },
      fact("answer", h("span", { class: "answer" }, system.answer || "–")),
      fact("score", number(system.score)),
      fact("set F1", system.set_f1 === null || system.set_f1 === undefined ? null
        : number(system.set_f1)),
      fact("tokens read", system.tokens === null ? null : number(system.tokens, 0))),
    system.note ? h("p", { class: "small bad" }, system.note) : null,
    system.model || system.failed ? null
      : h("p", { class: "small quiet" }, `No steps: ${system.why}.`));
}

function difference(a, b, needed) {
  if (!a || !b || !a.list || !b.list || a.failed || b.failed) return null;
  const before = new Set(a.list), after = new Set(b.list);
  const kept = b.list.filter((i) => before.has(i)), added = b.list.filter((i) => !before.has(i));
  const dropped = a.list.filter((i) => !after.has(i));
  if (!added.length && !dropped.length) {
    const same = a.list.every((i, at) => b.list[at] === i);
    return h("p", { class: "small" }, same ? "The list did not change."
      : "The same passages in another order.");
  }
  return h("p", { class: "small" },
    kept.length ? ["kept ", chips(kept, needed), "  "] : null,
    dropped.length ? ["dropped ", chips(dropped, needed), "  "] : null,
    added.length ? ["added ", chips(added, needed)] : null);
}

function candidates(question, a, b, needed, shown) {
  const at = (system) => new Map((system && system.list ? system.list : []).map((p, i) => [p, i + 1]));
  const before = at(a), after = at(b), expert = new Set(question.expert ? question.expert.list : []);
  const items = question.passages.map((passage, index) => {
    const place = index + 1;
    const picked = before.has(place) || after.has(place);
    return h("li", { class: [needed.has(place) ? "needed" : "", picked ? "picked" : ""].join(" ") },
      h("div", { class: "head" }, h("b", {}, `[${place}]`),
        passage.title ? h("b", {}, passage.title) : null,
        needed.has(place) ? h("span", { class: "tag needed" }, "needed") : null,
        before.has(place) ? h("span", { class: "tag a" }, `before: ${before.get(place)}.`) : null,
        after.has(place) ? h("span", { class: "tag b" }, `after: ${after.get(place)}.`) : null,
        expert.has(place) ? h("span", { class: "tag rest" }, "expert") : null,
        shown !== null && place > shown
          ? h("span", { class: "tag rest" }, "not in the rollout's prompt") : null,
        h("span", { class: "quiet small" }, passage.id),
        passage.score === null ? null
          : h("span", { class: "quiet small" }, `retriever ${number(passage.score, 3)}`)),
      h("p", { class: "text" }, passage.text));
  });
  const section = h("section", {}, h("div", { class: "top" },
    h("h3", {}, `Candidates (${question.passages.length})`),
    h("button", { type: "button", class: "toggle", "aria-pressed": "false", onclick: (event) => {
      const whole = section.classList.toggle("whole");
      event.target.setAttribute("aria-pressed", `${whole}`);
    } }, "Whole texts")),
    h("ol", { class: "passages" }, items));
  if (question.absent) {
    section.append(h("p", { class: "small quiet" },
      `${question.absent} needed passages are not among the candidates.`));
  }
  return section;
}

function rollout(one, needed, ask) {
  const terms = [...new Set(one.lists.flatMap((t) => Object.keys(t.terms)))];
  const weighted = one.lists.some((t) => t.weight !== null);
  const most = Math.max(...one.lists.map((t) => t.reward), 1e-9);
  const head = ["list", "drawn", "reward", ...terms, "log-prob",
    ...(one.same ? [] : ["reference"]), ...(weighted ? ["weight"] : []), "answer", ""];
  const left = new Set(["list", "reward", "answer", ""]);
  const rows = one.lists.map((t) => {
    const lacking = t.missing.length ? `without ${t.missing.join(", ")}` : "";
    const value = h("td", {}, h("span", {}, number(t.reward)), " ");
    const strip = bar(Math.max(t.reward, 0) / most * 0.5, "taken");
    strip.style.width = `${Math.max(t.reward / most, 0) * 2.5}rem`;
    value.append(strip);
    if (lacking) value.append(h("div", { class: "small bad" }, lacking));
    return h("tr", {}, h("td", {}, chips(t.list, needed)), h("td", { class: "n" }, `${t.count}×`),
      value, terms.map((name) => h("td", { class: "n" }, number(t.terms[name]))),
      h("td", { class: "n", title: t.logps.length
        ? `by token: ${t.logps.map((x) => number(x)).join("  ")}` : null }, t.logps.length || t.logp ? number(t.logp) : "–"),
      one.same ? null : h("td", { class: "n" }, number(t.reference_logp)),
      weighted ? h("td", { class: "n" }, number(t.weight, 3)) : null,
      h("td", { class: "answer" }, t.answer || "–"),
      h("td", {}, one.model ? h("button", { type: "button", "data-steps": "r",
        "aria-label": `steps of ${t.list.length ? t.list.map((i) => `[${i}]`).join(" ") : "None"}`,
        onclick: () => ask(one.name, t.list) }, "Steps") : null));
  });
  const weights = Object.entries(one.reward || {}).filter(([n, w]) => n !== "class" && w)
    .map(([n, w]) => `${w} × ${n}`).join(" + ");
  return h("section", {}, h("h3", {}, `Sampled lists: ${one.name}`),
    h("p", { class: "small quiet" },
      `${one.lists.length} distinct lists, ${one.shown} passages shown.`,
      weights ? ` Reward: ${weights}.` : "",
      one.same ? " The reference is the policy itself." : "",
      one.model ? "" : ` No steps: ${one.why}.`),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Sampled lists" },
      h("table", {}, h("thead", {}, h("tr", {}, head.map((name) =>
        h("th", { scope: "col", class: left.has(name) ? null : "n" },
          name || h("span", { class: "quiet" }, "steps"))))), h("tbody", {}, rows))));
}

function others(systems, needed) {
  if (!systems.length) return null;
  return h("details", {}, h("summary", {}, `Other systems (${systems.length})`),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Other systems" },
      h("table", {}, h("thead", {}, h("tr", {}, ["system", "list", "score", "set F1", "answer"]
        .map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, systems.map((x) => h("tr", {}, h("td", {}, x.name),
        h("td", {}, x.failed ? "failed" : chips(x.list, needed)), h("td", {}, number(x.score)),
        h("td", {}, number(x.set_f1)), h("td", { class: "answer" }, x.answer || "–")))))));
}

export function stepsPanel(found, list, side) {
  const items = found.steps.map((step, index) => {
    const rows = [["stop", step.stop, step.taken === null, "stop"],
      ...step.ids.map(([id, p]) => [`[${id}]`, p, id === step.taken, ""])];
    const top = rows.slice(0, 6);
    const taken = rows.find((row) => row[2]);
    if (!top.includes(taken)) top[top.length - 1] = taken;
    return h("li", {}, h("b", {}, `${index + 1}. `, step.taken === null ? "stops" : `takes [${step.taken}]`),
      h("table", {}, h("tbody", {}, top.map(([name, p, chosen, cls]) =>
        h("tr", { class: chosen ? "taken" : null }, h("td", {}, name),
          h("td", { class: "wide" }, bar(p, cls)), h("td", { class: "n" }, percent(p)))))),
      step.ids.length > 5 ? h("span", { class: "small quiet" },
        `and ${step.ids.length - 5} less probable`) : null);
  });
  return h("section", { class: "steps" },
    h("div", { class: "top" }, h("h3", {}, "Step by step: ", chips(list, null))),
    h("p", { class: "small quiet" }, `By ${found.model}'s model (${side}), at temperature 1, over ` +
      `${found.shown} of ${found.candidates} candidates; log-probability of the whole list ` +
      `${number(found.logp)}.`,
      found.candidates > found.shown ? " A list chosen through windows saw other prompts than this."
        : ""),
    h("ol", {}, items));
}

export function detail(value, state, actions) {
  const question = value.question;
  const needed = new Set(question && question.needed ? question.needed : []);
  const by = new Map(value.systems.map((x) => [x.name, x]));
  const a = by.get(state.a), b = by.get(state.b);
  const shown = value.rollouts.length ? Math.max(...value.rollouts.map((r) => r.shown)) : null;
  const steps = h("div", { id: "steps", "aria-live": "polite" });
  return [
    h("div", { class: "top" }, h("h2", { tabindex: "-1" }, value.text || value.id),
      h("button", { type: "button", onclick: actions.close, title: "overview (Esc)" }, "Close")),
    h("p", { class: "quiet small" }, [value.id, question && question.task, question && question.type,
      question ? (question.needed === null ? "needed passages unknown"
        : `needs ${question.needed.length + question.absent}`) : "its question file is gone"]
      .filter(Boolean).join("  ·  ")),
    question && question.answers.length ? h("p", {}, h("span", { class: "quiet" }, "Reference: "),
      question.answers.slice(0, 8).join("  /  "),
      question.answers.length > 8 ? ` and ${question.answers.length - 8} more` : "") : null,
    question && question.expert ? h("p", {}, h("span", { class: "quiet" },
      `Expert${question.expert.source ? ` (${question.expert.source})` : ""}: `),
      chips(question.expert.list, needed)) : null,
    a || b ? h("div", { class: "cards" }, a ? systemCard(a, "a", needed, value, actions.steps) : null,
      b ? systemCard(b, "b", needed, value, actions.steps) : null) : null,
    difference(a, b, needed),
    steps,
    value.rollouts.map((one) => rollout(one, needed, actions.steps)),
    question ? candidates(question, a, b, needed, shown) : null,
    others(value.systems.filter((x) => x !== a && x !== b), needed),
  ].flat().filter(Boolean);
}
