// What axe-core asks for beyond the theme: names for the search and for code's buttons, code that the keyboard scrolls.
document$.subscribe(() => {
  document.querySelector("[data-md-component=search]")?.setAttribute("aria-label", "Search");
  document.querySelectorAll("pre > code").forEach((code) => (code.tabIndex = 0));
  document.querySelectorAll(".md-code__nav").forEach((nav, number) => nav.setAttribute("aria-label", `Code ${number + 1}`));
});
