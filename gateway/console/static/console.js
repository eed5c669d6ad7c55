// A page is old once the gateway no longer answers it. One without a session leads to the sign-in: it is loaded again.
const old = document.getElementById("old");
for (const name of ["old", "htmx:error", "htmx:response:error", "htmx:sse:error"]) {
  document.addEventListener(name, () => { old.hidden = false; });
}
document.addEventListener("htmx:after:swap", () => { old.hidden = true; });
document.addEventListener("htmx:sse:after:connection", ({ detail }) => {
  if (detail.connection.status === 204) location.reload();
});

// What a reviewer writes stays in this tab until it is sent, also where the session ends before. Signing out drops it.
const texts = [...document.querySelectorAll("form:has(> [name=request]) textarea")];
const who = document.querySelector(".who");
const nameOf = (text) => `${who.dataset.person} ${text.form.elements.request.value} ${text.name}`;
const keep = () => sessionStorage.setItem("draft", JSON.stringify(texts.map((text) => [nameOf(text), text.value])));
if (texts.length) {
  const draft = new Map(JSON.parse(sessionStorage.getItem("draft") ?? "[]"));
  for (const text of texts) text.value ||= draft.get(nameOf(text)) ?? "";
  keep();
  document.addEventListener("input", keep);
}
who.addEventListener("submit", () => sessionStorage.clear());

// A form is sent once: a second click would drop the answer to the first, and with it a new key that is shown once.
const AGAIN_MS = 30_000; // a sending that was stopped by hand may be tried again
let sentAt = -Infinity;
document.addEventListener("submit", (event) => {
  if (event.target.method !== "post") return;
  if (event.timeStamp - sentAt < AGAIN_MS) event.preventDefault();
  else sentAt = event.timeStamp;
});
addEventListener("pageshow", () => { sentAt = -Infinity; }); // also after a step back to this page

// The keys of a review: a number chooses a judgement, Enter sends it. Elsewhere keys do what they always do.
document.addEventListener("keydown", (event) => {
  const form = document.getElementById("review");
  const writing = event.target.matches("textarea, input:not([type=radio]), button, a, select, summary");
  if (!form || writing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Enter") {
    event.preventDefault();
    if (!event.repeat) form.requestSubmit(form.querySelector("button[value=send]"));
    return;
  }
  const choice = form.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
  if (choice) {
    choice.checked = true;
    choice.focus();
  }
});
