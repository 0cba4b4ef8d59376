// Validate one GLB with the Khronos validator and print its report as JSON. Usage: node validate_gltf.js FILE
const fs = require("fs");
const path = require("path");
const validator = require(path.join(process.cwd(), "node_modules", "gltf-validator"));

validator
  .validateBytes(new Uint8Array(fs.readFileSync(process.argv[2])))
  .then((report) => console.log(JSON.stringify(report)))
  .catch((error) => {
    console.error(String(error));
    process.exit(1);
  });
