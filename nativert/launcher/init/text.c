/* What is sent and written: JSON objects in a buffer. */
#include "init.h"

#include <string.h>

#define MAX_STRING 4096

static void add(struct text *text, const char *bytes, size_t length)
{
	/* Terminated for who prints it. What does not fit is a mistake of ours that ends here. */
	if (length >= sizeof(text->data) - text->length)
		__builtin_trap();
	memcpy(text->data + text->length, bytes, length);
	text->length += length;
	text->data[text->length] = '\0';
}

static void add_text(struct text *text, const char *plain)
{
	add(text, plain, strlen(plain));
}

char *digits(char *at, uint64_t number, int width)
{
	char reversed[24];
	int count = 0;

	do {
		reversed[count++] = (char)('0' + number % 10);
		number /= 10;
	} while (number || count < width);
	while (count)
		*at++ = reversed[--count];
	return at;
}

static void add_integer(struct text *text, int64_t number)
{
	char buffer[24];
	char *at = buffer;
	uint64_t magnitude = (uint64_t)number;

	if (number < 0) {
		*at++ = '-';
		magnitude = 0 - magnitude;
	}
	at = digits(at, magnitude, 1);
	add(text, buffer, (size_t)(at - buffer));
}

static void add_escape(struct text *text, unsigned int unit)
{
	static const char hex[] = "0123456789abcdef";
	char buffer[6] = {'\\', 'u', hex[unit >> 12 & 15], hex[unit >> 8 & 15],
			  hex[unit >> 4 & 15], hex[unit & 15]};

	add(text, buffer, sizeof(buffer));
}

/* Bytes that are no UTF-8 travel as Python has them in its strings: b'\xff' is "\udcff". */
static void add_string(struct text *text, const char *bytes)
{
	const unsigned char *at = (const unsigned char *)bytes;
	/* A name may have megabytes; cut in a character it is bytes that are no UTF-8. */
	const unsigned char *end = at + strnlen(bytes, MAX_STRING);

	add(text, "\"", 1);
	while (at < end) {
		size_t length = utf8_sequence(at, end);

		if (!length) {
			add_escape(text, 0xdc00u + *at++);
			continue;
		}
		if (*at < 0x20 || *at == '"' || *at == '\\')
			add_escape(text, *at);
		else
			add(text, (const char *)at, length);
		at += length;
	}
	add(text, "\"", 1);
}

static void add_key(struct text *text, const char *key)
{
	if (text->length && text->data[text->length - 1] != '{')
		add(text, ",", 1);
	add(text, "\"", 1);
	add_text(text, key);
	add(text, "\":", 2);
}

void text_open(struct text *text)
{
	text->length = 0;
	add(text, "{", 1);
}

void text_close(struct text *text)
{
	add(text, "}", 1);
}

void put_open(struct text *text, const char *key)
{
	add_key(text, key);
	add(text, "{", 1);
}

void put_end(struct text *text)
{
	add(text, "}", 1);
}

void put_raw(struct text *text, const char *key, const char *json)
{
	add_key(text, key);
	add_text(text, json ? json : "null");
}

void put_string(struct text *text, const char *key, const char *bytes)
{
	add_key(text, key);
	if (bytes)
		add_string(text, bytes);
	else
		add_text(text, "null");
}

void put_integer(struct text *text, const char *key, int64_t number)
{
	add_key(text, key);
	add_integer(text, number);
}

void put_integer_or_null(struct text *text, const char *key, int64_t number, bool known)
{
	if (known)
		put_integer(text, key, number);
	else
		put_raw(text, key, NULL);
}

void put_bool(struct text *text, const char *key, bool truth)
{
	put_raw(text, key, truth ? "true" : "false");
}

void put_seconds(struct text *text, const char *key, int64_t ns)
{
	char buffer[48];
	char *at = digits(buffer, (uint64_t)(ns / NS_PER_S), 1);

	*at++ = '.';
	at = digits(at, (uint64_t)(ns % NS_PER_S), 9);
	*at = '\0';
	put_raw(text, key, buffer);
}
