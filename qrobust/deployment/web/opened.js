// Browsers run modules, and read graphs, from a server only.
if (location.protocol === "file:") {
  document.body.dataset.state = "failed";
  document.getElementById("status").textContent =
    "This page needs a server. In the folder above, run: python -m http.server --bind 127.0.0.1 8000 " +
    "and open http://127.0.0.1:8000/web/";
}
