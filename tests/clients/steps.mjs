// What the scripts of JavaScript clients share; the same protocol as steps.py.
//
//     SEQROUTE_URL=http://localhost:4000 SEQROUTE_KEY=sk-... node use_openai.mjs

export const URL_ = process.env.SEQROUTE_URL ?? "http://localhost:4000";
export const KEY = process.env.SEQROUTE_KEY ?? "";
/** The headers by which all requests of a script are one session with one budget. */
export const SESSION = {
  "X-Session-Id": process.env.SEQROUTE_SESSION ?? "example",
  "X-Session-Budget-USD": process.env.SEQROUTE_BUDGET_USD ?? "0.05",
};
export const HELLO = "What is the weather in Berlin?";
/** The provider of `make clients` answers this at length, so that a budget is soon spent. */
export const STORY = "Tell a long story.";
const MOST_STORIES = 60;

/** Run the function and report whether it answered; it answers the text that the client was given. */
export async function step(api, name, turn) {
  try {
    const said = await turn();
    report(api, name, Boolean(said), String(said));
  } catch (error) {
    report(api, name, false, shown(error));
  }
}

/** Take the turn until the money ends; report what the client then shows. */
export async function refused(api, turn) {
  for (let taken = 0; taken < MOST_STORIES; taken += 1) {
    try {
      await turn();
    } catch (error) {
      return report(api, "refused", true, shown(error));
    }
  }
  return report(api, "refused", false, `the budget was not spent after ${MOST_STORIES} turns`);
}

function shown(error) {
  const status = error.statusCode ?? error.status;
  return `${error.name}: ${status === undefined ? "" : `${status} `}${error.message}` + (error.cause ? ` <- ${error.cause}` : "");
}

function report(api, name, ok, said) {
  console.log(JSON.stringify({ api, step: name, ok, said }));
}
