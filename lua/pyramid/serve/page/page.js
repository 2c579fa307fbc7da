// Begins: what the server has, the tabs of narrow windows, keys that hold everywhere.
const showTab = name => {
  for (const other of ["chat", "lens"]) {
    const on = other === name, tab = $("tab-" + other);
    tab.setAttribute("aria-selected", String(on));
    tab.tabIndex = on ? 0 : -1;
    $(other).classList.toggle("away", !on);
  }
};

const startTabs = () => {
  for (const name of ["chat", "lens"]) {
    $("tab-" + name).addEventListener("click", () => showTab(name));
    $("tab-" + name).addEventListener("keydown", e => {
      if (!["ArrowLeft", "ArrowRight", "Home", "End"].includes(e.key)) return;
      e.preventDefault();
      const to = e.key === "Home" ? "chat" : e.key === "End" ? "lens"
        : name === "chat" ? "lens" : "chat";
      showTab(to);
      $("tab-" + to).focus();
    });
  }
  showTab("chat");
};

// What the server has: its models, and its policies.
const learn = async () => {
  try {
    const found = await askJson("v1/models");
    models = list(found.data).map(m => m.id).filter(Boolean);
    $("model-many").hidden = models.length < 2;
    $("model-one").textContent = models.length === 1 ? models[0] : "";
    $("model-one").title = models[0] || "";
    $("model").replaceChildren(...models.map(id => make("option", { value: id }, id)));
    fillPolicies(await askJson("pyramid/policies"));
    if ($("status").dataset.trouble) say("");
    delete $("status").dataset.trouble;
  } catch (error) {
    if (error.status === 401) askKey();
    $("status").dataset.trouble = "1";
    say(error.message + " " + (error.help || ""));
  }
};

addEventListener("keydown", e => {
  if (e.key !== "Escape" || e.isComposing) return;
  if (running) {
    e.preventDefault();
    stop();
    $("message").focus();
  } else if (!$("key-box").hidden && $("key-box").contains(document.activeElement)) {
    $("key-box").hidden = true;
    $("message").focus();
  }
});

startTabs();
startSettings(DTYPES);
startLens();
startChat();
learn();
if (matchMedia("(min-width: 880px)").matches) $("message").focus();
