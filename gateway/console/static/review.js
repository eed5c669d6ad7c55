// The keys of a review: a number chooses a judgement, Enter sends it. Elsewhere keys do what they always do.
document.addEventListener("keydown", (event) => {
  const form = document.getElementById("review");
  const writing = event.target.matches("textarea, input:not([type=radio]), button, a, select, summary");
  if (!form || writing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Enter") {
    event.preventDefault();
    form.requestSubmit(form.querySelector("button[value=send]"));
    return;
  }
  const choice = form.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
  if (choice) {
    choice.checked = true;
    choice.focus();
  }
});
