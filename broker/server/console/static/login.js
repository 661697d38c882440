// Says why a login was refused.
const said = {
  "?wrong": "Name or password is wrong.",
  "?wait": "Too many wrong passwords: wait a minute, and try again.",
};
document.querySelector("#why").textContent = said[location.search] ?? "";
