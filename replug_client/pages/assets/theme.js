"use strict";
// Dark or light: as the system is, until the reader says otherwise; remembered where the browser lets a page remember.
const Theme = (() => {
  const key = "replug-theme";
  const root = document.documentElement;
  const system = window.matchMedia("(prefers-color-scheme: dark)");

  function remembered() {
    try {
      return localStorage.getItem(key);
    } catch {
      return null; // a page from a file may not be let
    }
  }

  function isDark() {
    return root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
  }

  function say() {
    for (const button of document.querySelectorAll("[data-theme-switch]")) {
      button.textContent = isDark() ? "Light" : "Dark";
      button.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
    }
  }

  function toggle() {
    root.dataset.theme = isDark() ? "light" : "dark";
    try {
      localStorage.setItem(key, root.dataset.theme);
    } catch {
      // then it holds for this page alone
    }
    say();
  }

  const before = remembered();
  if (before === "dark" || before === "light") root.dataset.theme = before;
  system.addEventListener("change", say);
  for (const button of document.querySelectorAll("[data-theme-switch]")) button.addEventListener("click", toggle);
  say();
  return { toggle };
})();
