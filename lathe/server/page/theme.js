// Before anything is drawn: the look that was chosen. Settings are read again, with care, by store.js.
try { document.documentElement.dataset.theme = JSON.parse(localStorage.getItem("lathe.settings")).theme; } catch { /* as the system has it */ }
