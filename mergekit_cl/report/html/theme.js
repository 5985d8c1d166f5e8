// Light or dark: as the system says, until the button says otherwise.

const showTheme = (redraw) => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const tell = () => byId("theme").setAttribute("aria-pressed", String(isDark()));
  byId("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    tell();
    redraw();
  });
  system.addEventListener("change", () => { tell(); redraw(); });
  tell();
};
