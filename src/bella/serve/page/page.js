"use strict";
const $ = (id) => document.getElementById(id);
const percent = (x) => (x >= 0.9995 && x < 1 ? "> 99.9%" : `${(100 * x).toFixed(1)}%`);
const nats = (x) => x.toFixed(3);
let run = null;

/** An element with attributes and children; texts are texts and never markup. */
function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

/** A bar that is so much full; widths are set by script, as the page allows no inline styles. */
function bar(share) {
  const inside = make("i");
  inside.style.width = `${100 * Math.min(Math.max(share, 0), 1)}%`;
  return make("span", { class: "bar", "aria-hidden": "true" }, inside);
}

function say(text, failed = false) {
  $("status").textContent = text;
  $("status").classList.toggle("failed", failed);
}

async function ask(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = { ...(options.headers ?? {}), ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  const answer = await fetch(path, { ...options, headers });
  const content = await answer.json().catch(() => ({ detail: `The service answered ${answer.status}.` }));
  if (answer.status === 401) $("access").hidden = false;
  if (!answer.ok) throw new Error(content.detail);
  return content;
}

const json = (content) => ({ method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content) });

// ---------------------------------------------------------------- what is said

/** In a sentence, whether to trust it. */
function verdict(answer) {
  if (answer.refer === true) {
    return ["doubt", "Ask a person", `Its entropy of ${nats(answer.entropy)} nats reaches the threshold of ${nats(run.threshold)}.`];
  }
  if (answer.refer === false) {
    return ["", "Sure enough", `Its entropy of ${nats(answer.entropy)} nats is below the threshold of ${nats(run.threshold)}. ${run.promise}`];
  }
  const votes = answer.votes;
  const same = votes.filter((vote) => vote.class === answer.class).length;
  if (votes.length < 2) return ["", "One member", "There is nobody to dispute what it says."];
  if (same === votes.length) return ["", `All ${same} members say ${answer.class}`, answer.probability < 0.8 ? "Together they are not very sure." : ""];
  return ["doubt", `${same} of ${votes.length} members say ${answer.class}`, "The others dispute it."];
}

function verdictLine([kind, words, more]) {
  return make("p", { class: `verdict ${kind}` }, words, more ? make("span", {}, more) : null);
}

function figure(name, value, share, about) {
  return make("div", {}, make("dt", {}, name), make("dd", {}, make("b", {}, value), share == null ? null : bar(share), make("span", { class: "small" }, about)));
}

function table(heads, rows) {
  const line = (kind, cells) => make("tr", {}, ...cells.map((cell, i) => make(kind, i === 0 && kind === "td" ? { class: "word" } : { scope: kind === "th" ? "col" : null }, String(cell))));
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table" }, make("table", {}, make("thead", {}, line("th", heads)), make("tbody", {}, ...rows.map((row) => line("td", row)))));
}

function classCard(answer, shown, names) {
  const named = (name) => names?.[name] ?? name;
  const sorted = Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1]);
  const most = Math.log(sorted.length);
  const rest = sorted.slice(6).reduce((sum, [, p]) => sum + p, 0);
  const rows = sorted.slice(0, 6).map(([name, p]) => [named(name), p]);
  if (sorted.length > 6) rows.push([`${sorted.length - 6} others`, rest]);
  return make("article", { class: `card ${shown.tagName === "IMG" ? "" : "wide"}`, "data-class": answer.class },
    shown,
    make("div", {},
      make("h2", {}, `${named(answer.class)}, ${percent(answer.probability)}`),
      verdictLine(verdict(answer)),
      make("ul", { class: "bars", "aria-label": "Probabilities" }, ...rows.map(([name, p]) =>
        make("li", {}, make("span", {}, name), make("span", { class: "share" }, percent(p)), bar(p)))),
      make("dl", { class: "figures" },
        figure("Entropy: all doubt", `${nats(answer.entropy)} nats`, answer.entropy / most, `of at most ${nats(most)}`),
        figure("Mutual information: what the members dispute", `${nats(answer.mutual_information)} nats`, answer.mutual_information / most, `each by itself doubts ${nats(answer.expected_entropy)} nats`),
        answer.novelty == null ? null : figure("Novelty", answer.novelty.toFixed(2), null, "about 2 as the validation examples; large is unlike the training data")),
      make("details", {}, make("summary", {}, `What each of the ${answer.votes.length} members says`),
        table(["member", "class", "probability"], answer.votes.map((vote) => [vote.member, named(vote.class), percent(vote.probability)])))));
}

function numberCard(answer, shown) {
  const ends = [answer.low_90, answer.high_90, ...answer.votes.map((vote) => vote.mean)];
  const low = Math.min(...ends), wide = Math.max(...ends) - low || 1;
  const at = (x) => `${100 * (x - low) / wide}%`;
  const scale = make("div", { class: "scale", role: "img", "aria-label": `90% interval from ${answer.low_90.toPrecision(4)} to ${answer.high_90.toPrecision(4)}` });
  const line = make("i");
  line.style.left = at(answer.low_90);
  line.style.width = `${100 * (answer.high_90 - answer.low_90) / wide}%`;
  scale.append(line);
  for (const vote of [...answer.votes, { mean: answer.mean, all: true }]) {
    const dot = make("b", vote.all ? { class: "mean" } : {});
    dot.style.left = at(vote.mean);
    scale.append(dot);
  }
  const disputed = answer.epistemic_std > answer.aleatoric_std;
  return make("article", { class: "card wide", "data-mean": answer.mean }, shown, make("div", {},
    make("h2", {}, `${answer.mean.toPrecision(4)} ± ${answer.std.toPrecision(2)}`),
    verdictLine(answer.refer != null ? verdict(answer) : disputed ? ["doubt", "The particles dispute it", "Their means differ by more than the noise that each of them sees."] : ["", "The particles agree", "Within the noise that each of them sees."]),
    scale,
    make("p", { class: "small" }, `90% between ${answer.low_90.toPrecision(4)} and ${answer.high_90.toPrecision(4)}; each dot is a particle's mean.`),
    make("dl", { class: "figures" },
      figure("Noise that all see", `± ${answer.aleatoric_std.toPrecision(3)}`, null, "standard deviation"),
      figure("What they dispute", `± ${answer.epistemic_std.toPrecision(3)}`, null, "standard deviation of their means"),
      figure("Mutual information", `${nats(answer.mutual_information)} nats`, null, "")),
    make("details", {}, make("summary", {}, `What each of the ${answer.votes.length} says`),
      table(["member", "mean", "std"], answer.votes.map((vote) => [vote.member, vote.mean.toPrecision(4), vote.std.toPrecision(3)])))));
}

function writtenCard(answer, shown) {
  const most = Math.max(0.05, ...answer.tokens.map((token) => token.mutual_information));
  // Tokenizers that keep spaces elsewhere have pieces that do not join to the answer.
  const joins = answer.tokens.map((token) => token.token).join("").trim().startsWith(answer.answer.trim());
  const text = make("p", { class: "written" }, ...answer.tokens.flatMap((token) => {
    const mark = make("mark", { title: `entropy ${nats(token.entropy)}, mutual information ${nats(token.mutual_information)}` }, token.token);
    mark.style.setProperty("--doubt", `${Math.round(60 * token.mutual_information / most)}%`);
    return joins ? [mark] : [mark, " "];
  }));
  const worst = answer.tokens.reduce((a, b) => (b.mutual_information > a.mutual_information ? b : a), answer.tokens[0]);
  return make("article", { class: "card wide", "data-answer": answer.answer }, shown, make("div", {},
    joins ? null : make("h2", {}, answer.answer),
    text,
    make("p", { class: "small" }, "The stronger the colour, the more the particles dispute a token."),
    answer.refer != null ? verdictLine(verdict(answer)) : null,
    make("dl", { class: "figures" },
      figure("Entropy, a token", `${nats(answer.entropy)} nats`, null, "all doubt"),
      figure("Mutual information, a token", `${nats(answer.mutual_information)} nats`, null, "what the particles dispute"),
      figure("Most disputed", worst ? JSON.stringify(worst.token) : "-", null, worst ? `${nats(worst.mutual_information)} nats` : "")),
    make("details", {}, make("summary", {}, `Each of the ${answer.tokens.length} tokens`),
      table(["token", "probability", "entropy", "mutual information"], answer.tokens.map((token) =>
        [JSON.stringify(token.token), percent(Math.exp(token.log_prob)), nats(token.entropy), nats(token.mutual_information)])))));
}

// ---------------------------------------------------------------- asking

async function answered(send, cards) {
  const buttons = [...document.querySelectorAll("#form button")];
  buttons.forEach((button) => { button.disabled = true; });
  say("Asking …");
  try {
    const found = cards(await send());
    $("answers").prepend(...found);
    while ($("answers").children.length > 50) $("answers").lastChild.remove();
    say(found.length === 1 ? `Answered: ${found[0].querySelector("h2, .written").textContent}` : `${found.length} answers.`);
  } catch (error) {
    say(error.message, true);
  } finally {
    buttons.forEach((button) => { button.disabled = false; });
  }
}

function askImages(files) {
  const all = [...files].slice(0, run.limits.batch);
  if (!all.length) return;
  const form = new FormData();
  all.forEach((file) => form.append("images", file));
  answered(() => ask("v1/predict/files", { method: "POST", body: form }), ({ predictions }) =>
    predictions.map((answer, i) => classCard(answer, make("img", { src: URL.createObjectURL(all[i]), alt: `Asked: ${all[i].name}` }))));
}

const quote = (text) => make("p", { class: "asked" }, text);
const area = (id, label, more = {}) => [make("label", { for: id }, label), make("textarea", { id, required: true, ...more })];

const FORMS = {
  images(form) {
    const input = make("input", { type: "file", id: "file", accept: "image/*", multiple: true, onchange: () => { askImages(input.files); input.value = ""; } });
    const drop = make("label", { class: "drop", id: "drop" }, input, make("strong", {}, "Drop images here"), "or choose some, or paste one");
    const over = (is) => (event) => { event.preventDefault(); drop.classList.toggle("over", is); };
    drop.addEventListener("dragover", over(true));
    drop.addEventListener("dragleave", over(false));
    drop.addEventListener("drop", (event) => { over(false)(event); askImages(event.dataTransfer.files); });
    document.addEventListener("paste", (event) => askImages(event.clipboardData?.files ?? []));
    form.append(drop);
    return null;
  },
  text(form) {
    form.append(...area("text", "Text"), ...(run.pair ? area("pair", "Second text") : []), make("button", {}, "Ask"));
    return () => {
      const text = $("text").value, pair = run.pair ? $("pair").value : null;
      const card = run.kind === "regression" ? numberCard : classCard;
      return [() => ask("v1/predict", json({ texts: [{ text, pair }] })), ({ predictions }) =>
        predictions.map((answer) => card(answer, quote(pair == null ? text : `${text}\n${pair}`)))];
    };
  },
  "multiple-choice"(form) {
    const letters = run.classes;
    form.append(...area("question", "Question"), ...letters.flatMap((letter) =>
      [make("label", { for: `option-${letter}` }, `Option ${letter}`), make("input", { type: "text", id: `option-${letter}`, required: true })]), make("button", {}, "Ask"));
    return () => {
      const question = $("question").value, options = letters.map((letter) => $(`option-${letter}`).value);
      const names = Object.fromEntries(letters.map((letter, i) => [letter, `${letter}. ${options[i]}`]));
      return [() => ask("v1/predict", json({ questions: [{ question, options }] })), ({ predictions }) =>
        predictions.map((answer) => classCard(answer, quote(question), names))];
    };
  },
  "causal-lm"(form) {
    const chat = make("input", { type: "checkbox", id: "chat", checked: run.chat, disabled: !run.chat });
    form.append(...area("prompt", "Prompt"), make("div", { class: "row" },
      make("label", { for: "tokens" }, "Tokens at most"), make("input", { type: "number", id: "tokens", min: 1, max: run.limits.tokens, value: Math.min(64, run.limits.tokens) }),
      chat, make("label", { for: "chat" }, "as a chat")), make("button", {}, "Ask"));
    return () => {
      const prompt = $("prompt").value;
      const asked = $("chat").checked ? { messages: [{ role: "user", content: prompt }] } : { prompt };
      return [() => ask("v1/generate", json({ prompts: [asked], max_new_tokens: Number($("tokens").value) })), ({ answers }) =>
        answers.map((answer) => writtenCard(answer, quote(prompt)))];
    };
  },
};
FORMS.regression = FORMS.text;

const WORDS = { images: "images", text: "texts", regression: "texts with a number", "multiple-choice": "questions with options", "causal-lm": "prompts" };

async function begin() {
  try {
    run = await ask("v1/run");
  } catch (error) {
    say(error.message, true);
    return;
  }
  $("access").hidden = true;
  say("");
  const classes = run.classes.length && run.kind !== "multiple-choice" ? ` Classes: ${run.classes.slice(0, 12).join(", ")}${run.classes.length > 12 ? `, and ${run.classes.length - 12} more` : ""}.` : "";
  const particles = run.particles === 1 ? "1 particle" : `${run.particles} particles`;
  $("about").textContent = `${particles} on ${run.network} answer ${WORDS[run.kind]}.${classes}`;
  $("served").textContent = `serves ${run.network.split("/").pop()}`;
  $("foot").textContent = `bella ${run.version}. Entropies are in nats. ${run.threshold == null ? "" : `From ${nats(run.threshold)} nats on an answer is for a person. `}${run.promise}`;
  document.title = `bella: ${run.network}`;
  const form = $("form");
  form.replaceChildren();
  const read = FORMS[run.kind](form);
  form.onsubmit = (event) => { event.preventDefault(); if (read) answered(...read()); };
  form.hidden = false;
}

$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value.trim());
  begin();
});
begin();
