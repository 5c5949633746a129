// Before anything is drawn: that scripts run, and the theme that was chosen earlier.
document.documentElement.classList.add("js");
try {
  const theme = localStorage.getItem("bwdln-theme");
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
} catch (error) { /* no storage for files in this browser */ }
