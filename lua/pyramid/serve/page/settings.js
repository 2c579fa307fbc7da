// What is kept: the policy, its options, how rows are stored, the budget; and how is sampled. It
// holds from the next answer on.
const settings = {
  policy: "", dtype: "", budget: "", temperature: "", max_tokens: "", seed: "", options: {},
  ...kept.get("localStorage", "settings", {}),
};
let policies = [];                       // as the server lists them

const save = () => kept.set("localStorage", "settings", settings);
const chosen = () => policies.find(p => p.name === settings.policy);
// Options that differ from the policy's own.
const changed = () => settings.options[settings.policy] || {};
const change = (key, value) => {
  const own = chosen()?.defaults?.[key], all = { ...changed() };
  if (value === undefined || value === own) delete all[key];
  else all[key] = value;
  settings.options[settings.policy] = all;
  settingsChanged();
};

const number = text => text.trim() === "" || !isFinite(Number(text)) ? undefined : Number(text);

// What a request says of all this: only what was set.
const asked = () => {
  const body = {}, how = {};
  if (settings.policy) how.policy = settings.policy;
  if (settings.policy && Object.keys(changed()).length) how.options = changed();
  if (settings.dtype) how.cache_dtype = settings.dtype;
  if (settings.budget.trim()) how.budget = settings.budget.trim();
  if (Object.keys(how).length) body.pyramid = how;
  for (const key of ["temperature", "max_tokens", "seed"]) {
    const value = number(String(settings[key]));
    if (value !== undefined) body[key] = value;
  }
  return body;
};

// The same as one line, for an answer's facts.
const askedShort = () => [settings.policy || "server's policy", ...Object.entries(changed())
  .map(([key, value]) => `${key}=${value}`), settings.dtype,
settings.budget.trim() && `budget ${settings.budget.trim()}`].filter(Boolean).join(", ");

// ---- the form -----------------------------------------------------------------------------------

const field = (key, own, limits) => {
  const now = changed()[key] ?? own, id = "option-" + key, text = typeof own === "string";
  const isList = Array.isArray(limits) && typeof limits[0] === "string";
  let input;
  if (typeof own === "boolean") {
    input = make("input", { id, type: "checkbox" });
    input.checked = now;
    input.addEventListener("change", () => change(key, input.checked));
  } else if (isList) {
    input = make("select", { id }, ...limits.map(v => make("option", { value: v }, v)));
    input.value = now;
    input.addEventListener("change", () => change(key, input.value));
  } else {
    const range = Array.isArray(limits) ? limits : [];
    input = make("input", text ? { id, spellcheck: "false", autocomplete: "off" }
      : { id, type: "number", min: range[0], max: range[1], step: range[2] ?? "any" });
    input.value = now;
    input.placeholder = String(own);
    input.addEventListener("change", () => {
      change(key, text ? input.value : number(input.value));
      if (input.value === "") input.value = own;
    });
  }
  const label = make("label", { class: typeof own === "boolean" ? "tick" : "", for: id });
  if (typeof own === "boolean") label.append(input, key);
  else label.append(key, input);
  return label;
};

const markChanged = () => {
  const now = changed(), names = Object.keys(now).filter(key => key !== "target").sort();
  $("options").querySelectorAll("label").forEach(label => label.classList.toggle("changed",
    label.getAttribute("for").slice(7) in now));
  $("options-short").textContent = names.length
    ? "· " + names.map(key => `${key} ${now[key]}`).join(", ") : "";
  $("options-reset").disabled = Object.keys(now).length === 0;
  const target = now.target ?? chosen()?.defaults?.target ?? 0;
  $("target").value = Math.round(target * 100);
  $("target-said").textContent = target > 0 ? percent(target) + " of the rows"
    : "as the policy has it";
  const said = [];
  if (settings.temperature !== "") said.push("temperature " + settings.temperature);
  if (settings.max_tokens !== "") said.push(settings.max_tokens + " tokens at most");
  if (settings.seed !== "") said.push("seed " + settings.seed);
  $("sampling-short").textContent = said.length ? "· " + said.join(", ") : "";
};

const settingsChanged = () => {
  save();
  markChanged();
  $("settings-said").textContent = chat.length
    ? "From the next answer on; “Again” answers the last message anew." : "";
};

// Fields of the policy that is chosen.
const fillOptions = () => {
  const policy = chosen(), box = $("options"), own = policy?.defaults || {};
  const names = Object.keys(own).sort()
    .filter(key => key !== "target" && typeof own[key] !== "object");
  const presets = Object.keys(policy?.presets || {}).sort();
  box.replaceChildren();
  if (presets.length) {
    const preset = make("select", { id: "option-preset" }, make("option", { value: "" }, "none"),
      ...presets.map(p => make("option", { value: p }, p)));
    preset.value = "";
    preset.addEventListener("change", () => {
      if (preset.value === "") return;
      settings.options[settings.policy] = { ...policy.presets[preset.value] };
      settingsChanged();
      const name = preset.value;
      fillOptions();
      $("option-preset").value = name;
      $("option-preset").focus();
    });
    box.append(make("label", { for: "option-preset" }, "set by preset", preset));
  }
  box.append(...names.map(key => field(key, own[key], policy.limits?.[key])));
  $("options-box").hidden = names.length === 0 && presets.length === 0;
  $("target-box").hidden = !(policy?.fit && typeof own.target === "number");
  $("policy-doc").textContent = policy ? policy.doc || "" : "What the server was started with.";
  markChanged();
};

const fillPolicies = found => {
  policies = list(found?.policies).filter(p => p && p.name)
    .sort((a, b) => a.name < b.name ? -1 : 1);
  if (policies.length && !chosen()) settings.policy = "";
  $("policy").replaceChildren(make("option", { value: "" }, "the server's own"),
    ...policies.map(p => make("option", { value: p.name }, p.name)));
  $("policy").value = settings.policy;
  fillOptions();
};

const startSettings = dtypes => {
  $("dtype").replaceChildren(make("option", { value: "" }, "server's own"),
    ...dtypes.map(d => make("option", { value: d }, d)));
  if (!dtypes.includes(settings.dtype)) settings.dtype = "";
  for (const key of ["dtype", "budget", "temperature", "max_tokens", "seed"]) {
    $(key).value = settings[key];
    $(key).addEventListener(key === "budget" ? "input" : "change", () => {
      settings[key] = $(key).value;
      settingsChanged();
    });
  }
  $("policy").addEventListener("change", () => {
    settings.policy = $("policy").value;
    fillOptions();
    settingsChanged();
  });
  $("target").addEventListener("input", () => change("target", Number($("target").value) / 100));
  $("options-reset").addEventListener("click", () => {
    delete settings.options[settings.policy];
    fillOptions();
    settingsChanged();
    $("options-box").querySelector("summary").focus();
  });
  $("settings").addEventListener("submit", e => e.preventDefault());
  fillPolicies({});
};
