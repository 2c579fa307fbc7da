-- The lexicon of the world generator (pyramid.world): what people, places and things can be called.
-- Order matters: a document is a function of its seed and of these lists, so new words change every
-- document.

local function list(s)
  local t = {}
  for w in s:gmatch("[^,]+") do t[#t + 1] = (w:match("^%s*(.-)%s*$"):gsub("%s+", " ")) end
  return t
end

return {
  women = list [[Mira, Tamsin, Ada, Clara, Edith, Flora, Greta, Hanna, Ida, Julia, Lena, Mabel, Nora, Olive, Petra,
    Rosa, Sybil, Thea, Ursula, Vera, Wilma, Yara, Zelda, Agnes, Bertha, Cora, Dora, Elsa, Freya, Gilda, Helga, Irma,
    Josie, Lucy, Maud, Nell, Polly, Ruth, Sally, Tilda, Una, Violet, Winnie, Beth, Daisy, Esther, Fanny, Hazel]],
  men = list [[Oren, Tom, Albert, Boris, Caleb, Daniel, Edgar, Felix, Gregor, Hugo, Ivan, Jonas, Karl, Leo, Martin,
    Ned, Oscar, Peter, Ralph, Simon, Theo, Victor, Walter, Arthur, Basil, Conrad, Dennis, Emil, Frank, George,
    Henry, Isaac, Jasper, Luke, Moses, Noel, Otto, Paul, Rufus, Samuel, Toby, Ulric, Wilbur, Abel, Bruno, Cyril,
    Duncan, Ernest]],
  towns = list [[Dunmore, Ashby, Carrow, Millbrook, Stonely, Harwick, Penfold, Redford, Tilbury, Wexham, Bramley,
    Colden, Easton, Farley, Glenmoor, Holt, Ivybridge, Kelby, Larkhill, Norwell, Oakham, Preston, Quarley, Rothby,
    Selby, Thornton, Upwell, Varley, Winslow, Yarmouth, Barton, Marlow]],
  colours = list "red, blue, green, yellow, white, black, brown, grey, purple, orange, pink, golden",
  stuffs = list [[brass, tin, oak, silver, copper, iron, glass, leather, clay, stone, pine, ivory, velvet, willow,
    marble, wooden]],
  boxes = list "box, chest, safe, locker, trunk, drawer",
  things = list [[lantern, whistle, kettle, mirror, spoon, hammer, flute, compass, candlestick, basket, bowl,
    button, ring, bell, clock, drum, fan, goblet, hook, jar, key, ladle, locket, medal, needle, pipe, plate, ruler,
    shield, statue, thimble, tray, vase, watch, bracelet, chain, cup, doll, feather, lamp]],
  -- Places carry their preposition; the answer to "where" is the whole phrase.
  places = list [[in the barn, in the kitchen, in the cellar, in the attic, in the garden, in the mill, in the
    school, in the church, in the stable, in the library, in the bakery, in the tower, in the cave, in the boat, in
    the hall, in the hut, in the forge, in the orchard, in the well house, in the tool shed, at the inn, at the
    harbour, at the market, at the old gate, on the bridge, on the shelf, on the porch, on the roof, on the long
    table, on the window sill, under the bed, under the stairs, under the oak tree, behind the door, behind the
    stove, beside the fountain]],
  trades = list [[baker, miller, tailor, doctor, teacher, farmer, fisher, potter, weaver, painter, carpenter,
    sailor, singer, cook, clerk, gardener, hunter, mason, barber, butcher, driver, joiner, nurse, printer, shepherd,
    soldier, smith, tanner, judge, guard]],
  foods = list [[plums, apples, pears, cherries, grapes, figs, nuts, beans, carrots, onions, mushrooms, cheese,
    honey, pancakes, soup, bread, cakes, fish, eggs, peas, melons, berries, dates, lemons]],
  pets = list "dog, cat, pony, goat, parrot, rabbit, goose, donkey",
  pet_names = list [[Bramble, Pepper, Button, Clover, Dusty, Fern, Ginger, Hopper, Jolly, Kipper, Muffin, Nutmeg,
    Pickle, Rusty, Smoky, Tansy, Biscuit, Whisker, Barley, Cobweb, Dandy, Flash, Patch, Quill, Sandy, Tinker,
    Velvet, Wisp, Acorn, Bluebell, Captain, Duke]],
  clothes = list "scarf, coat, hat, shirt, cloak, apron, ribbon, belt, cap, jacket, shawl, waistcoat",
  ages = list [[seven, eight, nine, ten, eleven, twelve, thirteen, fourteen, fifteen, sixteen, seventeen, eighteen,
    nineteen, twenty, thirty, forty, fifty, sixty, seventy, eighty]],
  kin = list "neighbour, cousin, teacher, best friend, partner, doctor, landlord, godchild",
  painted = list "door, gate, fence, roof, sign, window frame, wall, bench",
  buildings = list "mill, school, church, inn, bakery, stable, library, forge, barn, tower",
  instruments = list "fiddle, harp, horn, organ, trumpet, cello, banjo, guitar",
  hidden = list "letter, map, will, recipe, diary, photograph, ticket, treaty",
  weather = list "cold, warm, windy, misty, bright, grey, quiet, wet, frosty, dry",
  seasons = list "spring, summer, autumn, winter",
  days = list "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday",
  animals = list "fox, crow, owl, hare, deer, robin, badger, frog, swan, mouse, squirrel, heron",
  -- Verses: what is said in them cannot be guessed, only remembered.
  verse_adjectives = list [[old, pale, quick, silent, bitter, gentle, hollow, lonely, merry, proud, sleepy, tall,
    wild, young, broken, burning, crooked, distant, empty, frozen, hidden, humble, little, patient, restless, rusty,
    shining, stormy, tender, weary]],
  verse_nouns = list [[river, lantern, sparrow, candle, winter, shadow, harbour, meadow, thunder, garden, mountain,
    pebble, ribbon, willow, anchor, blossom, chimney, feather, hammer, island, kettle, ladder, morning, needle,
    orchard, puddle, rooster, saddle, timber, valley, wagon, whisper, acorn, beacon, cradle, dragon, ember, fiddle,
    giant, hollow]],
  verse_verbs = list [[sings to, waits for, follows, forgets, remembers, carries, covers, finds, guards, hears,
    kisses, laughs at, leaves, loves, mends, paints, runs to, shakes, steals, turns to, warms, watches, wakes, bows
    to, calls, chases, climbs, hides, dreams of, looks for]],
}
