/*
 * The parser of init: each line of standard input is a message in hexadecimal digits and is
 * answered by what init understood, as JSON, or by "refused".
 */
#include "init.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct text text;

static const struct json *walk(const struct json *value, const char *key)
{
	const struct json *at = value + 1;

	switch (value->kind) {
	case JSON_NULL:
		put_raw(&text, key, NULL);
		break;
	case JSON_FALSE:
	case JSON_TRUE:
		put_bool(&text, key, value->kind == JSON_TRUE);
		break;
	case JSON_INTEGER:
		put_integer(&text, key, value->integer);
		break;
	case JSON_NUMBER:
		put_string(&text, key, "a number");
		break;
	case JSON_TEXT:
		put_string(&text, key, value->text);
		break;
	case JSON_NOT_A_NAME:
		put_string(&text, key, "not a name");
		break;
	case JSON_LIST:
	case JSON_OBJECT:
		put_open(&text, key);
		for (uint32_t i = 0; i < value->entries; i++) {
			char name[24];
			char *end = digits(name, i, 1);

			if (value->kind == JSON_OBJECT) {
				strcpy(end, "k");
				at = walk(at, name);
				strcpy(end, "v");
			} else {
				*end = '\0';
			}
			at = walk(at, name);
		}
		put_end(&text);
		break;
	}
	if (at != json_next(value))
		abort();
	return at;
}

int main(void)
{
	char *line = NULL;
	size_t size = 0;

	while (getline(&line, &size, stdin) > 0) {
		size_t length = strcspn(line, "\n") / 2;
		/* Of exactly its size, so that a read behind it is seen. */
		char *data = malloc(length ? length : 1);
		unsigned int byte;
		struct json *value;

		for (size_t i = 0; i < length && sscanf(line + 2 * i, "%2x", &byte) == 1; i++)
			data[i] = (char)byte;
		value = json_parse(data, length);
		if (value) {
			text_open(&text);
			walk(value, "value");
			text_close(&text);
			puts(text.data);
		} else {
			puts("refused");
		}
		fflush(stdout);
		free(value);
		free(data);
	}
	free(line);
	return 0;
}
