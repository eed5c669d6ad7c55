// A page is old once the gateway no longer answers it. One without a session leads to the sign-in: it is loaded again.
const old = document.getElementById("old"), unsent = document.getElementById("unsent");
for (const name of ["old", "htmx:error", "htmx:response:error", "htmx:sse:error"]) {
  document.addEventListener(name, () => { old.hidden = false; });
}
document.addEventListener("htmx:after:swap", () => { old.hidden = true; });
document.addEventListener("htmx:sse:after:connection", ({ detail }) => {
  if (detail.connection.status === 204) location.reload();
});

// What is written into a form stays in this tab until it is sent, also where the session ends before: it is there again
// after the sign-in; texts of a review also without one. Signing out drops it.
const who = document.querySelector(".who");
const cameFromSignIn = /^[^?#]*\/sign-in/.test(document.referrer);
const fields = [...document.querySelectorAll("main form[method=post] :is(input, select, textarea)[name]")];
const kept = fields.filter(({ name }) => name !== "csrf" && name !== "once");
const place = fields.some(({ name }) => name === "request") ? "review" : "form";
const subjectOf = ({ form }) => form.elements.request?.value ?? location.pathname + location.search;
const nameOf = (field) =>
  [who.dataset.person, subjectOf(field), field.name, field.type === "radio" && field.value].join(" ");
const keep = () =>
  sessionStorage.setItem(place, JSON.stringify(kept.map((field) => [nameOf(field), field.value, field.checked])));
if (place === "form" && kept.length && !cameFromSignIn) sessionStorage.removeItem(place);
for (const [name, value, checked] of JSON.parse(sessionStorage.getItem(place) ?? "[]")) {
  const field = kept.find((each) => nameOf(each) === name);
  if (!field) continue;
  if (field.type === "textarea" && place === "review") field.value ||= value;
  else if (cameFromSignIn && field.type === "radio") field.checked = checked;
  else if (cameFromSignIn) field.value = value;
}
document.addEventListener("input", keep);
who.addEventListener("submit", () => sessionStorage.clear());

// A form is sent once: a second click would drop the answer to the first, and with it a new key that is shown once. The
// gateway is asked first, so that where it is away the page stays, with what was written.
const AGAIN_MS = 30_000; // a sending that was stopped by hand may be tried again
const own = document.querySelector("link[rel=stylesheet]").href;
let sentAt = -Infinity, going = false;
document.addEventListener("submit", async (event) => {
  const { target: form, submitter, timeStamp } = event;
  if (form.method !== "post" || going) return;
  event.preventDefault();
  if (timeStamp - sentAt < AGAIN_MS) return;
  sentAt = timeStamp;
  going = await fetch(own, { method: "HEAD", cache: "no-store" }).then(({ ok }) => ok, () => false);
  if (going) form.requestSubmit(submitter);
  else {
    sentAt = -Infinity;
    unsent.hidden = false;
    unsent.scrollIntoView({ block: "nearest" });
  }
  going = false;
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
    keep();
  }
});

// An age grows while its page is open.
const UNITS = [[86_400, "d"], [3600, "h"], [60, "min"]];
setInterval(() => {
  for (const age of document.querySelectorAll("time > small")) {
    const seconds = (Date.now() - Date.parse(age.parentElement.dateTime)) / 1000, span = Math.abs(seconds);
    const [size, unit] = UNITS.find(([size]) => span >= size) ?? [0];
    const words = size ? `${Math.floor(span / size).toLocaleString("en")} ${unit}` : "under 1 min";
    age.textContent = seconds < 0 ? `in ${words}` : `${words} ago`;
  }
}, 60_000);
