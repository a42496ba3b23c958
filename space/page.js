// A file that is too large is refused before it is sent; Gradio by itself says no more than "Error".
for (const kind of ["change", "drop"]) {
  document.addEventListener(kind, (event) => {
    const files = kind === "drop" ? event.dataTransfer?.files : event.target.files;
    const note = document.getElementById("too-large");
    if (!files || !note) return;
    const sizeMB = Math.max(0, ...[...files].map((file) => file.size)) / 1e6;
    const isTooLarge = sizeMB > Number(note.dataset.maxMb);
    note.textContent = isTooLarge
      ? `Your recording has ${sizeMB.toFixed(1)} MB; at most ${note.dataset.maxMb} MB are taken: give a part of it.`
      : "";
    if (!isTooLarge) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (kind === "change") event.target.value = "";
  }, true);
}
