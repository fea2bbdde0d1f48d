/* wordcount FILE: how often each word occurs, most frequent first; - is standard input. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "table.h"

static int count(struct table *t, FILE *f)
{
	char word[256];
	size_t len = 0;
	int c;
	do {
		c = getc(f);
		if (c != EOF && !isspace(c)) {
			if (len < sizeof word)
				word[len++] = (char)c;
		} else if (len) {
			if (table_add(t, word, len) < 0)
				return -1;
			len = 0;
		}
	} while (c != EOF);
	return ferror(f) ? -1 : 0;
}

int main(int argc, char **argv)
{
	if (argc != 2) {
		fprintf(stderr, "usage: wordcount FILE\n");
		return 2;
	}
	FILE *f = strcmp(argv[1], "-") ? fopen(argv[1], "r") : stdin;
	struct table t = {0};
	if (!f || count(&t, f) < 0) {
		perror(argv[1]);
		return 1;
	}
	size_t n = table_sort(&t);
	for (size_t i = 0; i < n; i++)
		printf("%lu %s\n", t.slots[i].count, t.slots[i].word);
	table_free(&t);
	return fclose(f) == 0 ? 0 : 1;
}
