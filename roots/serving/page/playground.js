"use strict";
// The page of `roots serve`: a prompt that streams, each token coloured by its loss, and a look inside.

// A loss at which a token is as red as can be, in nats.
const REDDEST = 8;
const LIKELIEST = 5;

function slider(name, value, most) {
  const shown = element("output", {}, value.toFixed(2));
  const input = element("input", { type: "range", min: "0", max: String(most), step: "0.05", value: String(value), name });
  input.addEventListener("input", () => (shown.textContent = Number(input.value).toFixed(2)));
  return [input, element("label", {}, name, input, shown)];
}

function field(name, attributes) {
  const input = element("input", { name, ...attributes });
  return [input, element("label", {}, name, input)];
}

function startPlayground(root, facts) {
  const prompt = element("textarea", { name: "prompt", placeholder: "The text to go on with", spellcheck: "false" });
  const [temperature, temperatureLabel] = slider("temperature", 0.8, 2);
  const [topP, topPLabel] = slider("top-p", 0.95, 1);
  topP.min = "0.05";
  const [tokens, tokensLabel] = field("tokens", { type: "number", min: "1", max: String(facts.context), value: "64" });
  const [seed, seedLabel] = field("seed", { type: "number", min: "0", placeholder: "by chance" });
  const [key, keyLabel] = field("key", { type: "password", autocomplete: "off" });
  const write = element("button", { type: "button", name: "write" }, "Write");
  const look = element("button", { type: "button", name: "look" }, "Look inside");
  const written = element("div", { class: "text written" });
  const state = element("p", { class: "note", role: "status" }, "");
  const inside = element("div", { id: "inside" });
  let leaving = null;
  let text = "";

  const ask = async (path, body, signal) => {
    const headers = { "content-type": "application/json" };
    if (facts.needs_key) headers.authorization = `Bearer ${key.value}`;
    const answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    return answer;
  };
  const tell = (words, failed = false) => {
    state.textContent = words;
    state.className = failed ? "failure" : "note";
  };

  const go = async () => {
    leaving = new AbortController();
    write.textContent = "Stop";
    text = "";
    written.replaceChildren();
    inside.replaceChildren();
    tell("writing ...");
    const body = {
      prompt: prompt.value,
      max_tokens: Number(tokens.value),
      temperature: Number(temperature.value),
      top_p: Number(topP.value),
      stream: true,
      echo: true,
      logprobs: LIKELIEST,
    };
    if (seed.value !== "") body.seed = Number(seed.value);
    let cost = 0;
    let count = 0;
    try {
      const answer = await ask("/v1/completions", body, leaving.signal);
      let reason = null;
      for await (const part of eventsOf(answer.body)) {
        if (part.error) throw new Error(part.error.message);
        for (const choice of part.choices) {
          text += choice.text;
          reason = choice.finish_reason ?? reason;
          for (const each of tokensOf(choice.logprobs)) {
            const isNew = each.offset >= prompt.value.length;
            written.append(spanOf(each, isNew, written.childElementCount));
            if (isNew && each.loss !== null) [cost, count] = [cost + each.loss, count + 1];
          }
        }
      }
      const mean = count > 0 ? `, ${number(cost / count)} nats each` : "";
      tell(`${count} tokens written${mean}; ended by ${reason}. The redder a token, the less it was expected.`);
    } catch (error) {
      if (error.name === "AbortError") tell("stopped");
      else tell(error.message, true);
    } finally {
      leaving = null;
      write.textContent = "Write";
    }
  };

  const lookInside = async () => {
    tell("looking inside ...");
    try {
      const found = await (await ask("/inspect", { text: text || prompt.value })).json();
      showInspection(inside, found);
      tell("");
    } catch (error) {
      tell(error.message, true);
    }
  };

  write.addEventListener("click", () => (leaving === null ? go() : leaving.abort()));
  look.addEventListener("click", lookInside);
  const controls = [temperatureLabel, topPLabel, tokensLabel, seedLabel, facts.needs_key ? keyLabel : null, write, look];
  root.replaceChildren(
    prompt,
    element("div", { class: "controls" }, ...controls.filter((each) => each !== null)),
    written,
    state,
    inside,
  );
}

// The objects of a stream of server-sent events.
async function* eventsOf(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function tokensOf(columns) {
  if (columns === null) return [];
  return columns.tokens.map((text, at) => ({
    text,
    offset: columns.text_offset[at],
    loss: columns.token_logprobs[at] === null ? null : -columns.token_logprobs[at],
    likeliest: Object.entries(columns.top_logprobs[at] ?? {}).sort((one, other) => other[1] - one[1]),
  }));
}

function spanOf({ text, loss, likeliest }, isNew, at) {
  const expected = () => likeliest.map(([word, value]) => `${Math.exp(value).toFixed(4)}  ${visible(word)}`).join("\n");
  const span = lossSpan(at, text, loss, { most: REDDEST, none: "nothing stands before it", expected });
  span.className = isNew ? "new" : "given";
  return span;
}

startPlayground(document.getElementById("playground"), JSON.parse(document.getElementById("facts").textContent));
