// A component of the world in wit/executor.wit: see ../README.md.
import { fetchFile, storeFile, log } from "bitzel:executor/host@0.1.0";

function run(task) {
  log("info", task.name);
  const out = { signature: "", outputFiles: [], stdout: "", stderr: "", exitCode: 0, durationMs: 0n };
  for (const line of task.script.split("\n")) {
    const [command, ...words] = line.split(" ");
    switch (command) {
      case "say":
        out.stdout += words.join(" ") + "\n";
        break;
      case "put":
        out.outputFiles.push([words[0], storeFile(new TextEncoder().encode(words.slice(1).join(" ")))]);
        break;
      case "get":
        out.stdout += new TextDecoder().decode(fetchFile(words[0]));
        break;
      case "exit":
        out.exitCode = Number(words[0]);
        return out;
      case "":
        break;
      default:
        throw `no such command: ${command}`; // which is the error of the result
    }
  }
  return out;
}

export const executor = {
  executeTask(task) {
    try {
      return run(task);
    } catch (e) {
      throw e.payload ?? e;
    }
  },
  ping: () => true,
};
