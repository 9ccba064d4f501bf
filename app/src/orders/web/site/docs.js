// Who is logged in tries things out as themselves: the cookie goes with each request.
SwaggerUIBundle({
  url: "/v1/schema/openapi.json",
  dom_id: "#interface",
  deepLinking: true,
  displayRequestDuration: true,
  validatorUrl: null,
});
