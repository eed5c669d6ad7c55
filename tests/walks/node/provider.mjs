// A certified OpenID provider for tests: node provider.mjs PORT REDIRECT_URI. It signs in everybody, by the name given.
import { Provider } from "oidc-provider";

const [port, redirect] = process.argv.slice(2);
const groups = { ada: ["gateway-admins"], edsger: ["gateway-reviewers", "all"], eve: ["all"] };
const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [{ client_id: "console", client_secret: "for-tests-only", redirect_uris: [redirect] }],
  claims: { openid: ["sub"], email: ["email", "email_verified"], profile: ["name", "groups"] },
  cookies: { keys: ["for-tests-only"] },
  findAccount: (_, id) => ({
    accountId: id,
    claims: () => ({ sub: id, name: `Name of ${id}`, email: `${id}@example.org`, email_verified: true, groups: groups[id] }),
  }),
});
provider.listen(Number(port), "127.0.0.1", () => console.log("ready"));
