import sys, pandas
scores = pandas.read_csv(sys.argv[1]).groupby(["policy", "budget", "task"], dropna=False)
print(scores[["score", "full", "rows", "bytes"]].mean().round(3))
