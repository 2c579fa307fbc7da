-- Common English words, for the keys of needles ("quiet-river") and for lists of words. Order
-- matters: a case is a function of its seed and of these lists.

local function list(s)
  local out = {}
  for word in s:gmatch "%a+" do out[#out + 1] = word end
  return out
end

return {
  adjectives = list [[able bare blue bold brave brief bright broad calm careful cheap clean clear clever cold cool
    crisp curious curly damp dark deep dense distant dry dull eager early easy empty even fair famous fancy fast fine
    firm flat fond frank free fresh full gentle glad golden grand grave great green grey happy hard harsh heavy high
    hollow honest hot huge humble idle jolly keen kind large late lazy lean light little lively lonely long loose loud
    low lucky mad main mild modern narrow near neat new nimble noble odd old open pale plain polite poor proud pure
    quick quiet rapid rare raw ready real rich ripe rough round rude rusty sad safe salty sharp short shy silent
    simple slim slow small smart smooth soft solid sour spare steady steep stiff still strange strict strong sudden
    sunny sweet swift tall tame tender thick thin tidy tight tiny tough vast warm weak wet white wide wild wise
    yellow young]],
  nouns = list [[anchor apple arrow autumn badge baker banana barn barrel basin basket beach bean bear bell bench
    berry bird blanket board boat bone bottle branch bread brick bridge broom brush bucket button cabin cactus camel
    camera candle canoe canyon captain carpet castle cave cellar chain chair chalk cheese cherry chimney circle cliff
    clock cloud coat coin comet compass copper coral corner cottage cotton crane creek cricket crown curtain daisy
    desert desk dolphin donkey door dragon drawer drum eagle ear echo engine fabric falcon farmer feather fence ferry
    field finger fire flag flame flute forest fork fountain fox frame frog garden garlic gate giant ginger glass glove
    goat grape guitar hammer harbor hat hedge helmet hill honey hook horse hotel island ivory jacket jewel judge jungle
    kettle key king kitchen kite ladder lake lamp lantern leaf lemon letter library lion lizard lobster lunch magnet
    map maple market marsh meadow medal melon mill mirror monkey moon morning mountain mouse museum needle nest night
    oak ocean olive onion orange orchard otter owl oyster paddle page palace panda paper parrot path peach pearl pebble
    pen pepper piano picture pigeon pillow pilot pine pirate planet plate plum pocket pond pony potato prince puzzle
    queen rabbit radio rain ribbon rice ring river robin rocket roof root rope rose saddle sail salt sand scarf school
    seed shadow shark sheep shell ship shirt shoe shovel silver singer sister snail snow soap soldier spider spoon
    spring square squirrel stable star station statue stone storm stove street sugar summer swan table tailor teacher
    temple tent thunder ticket tiger timber tomato tooth tower train tree trumpet tunnel turtle uncle valley vase
    village violin wagon wall walnut watch water whale wheat wheel whistle willow window winter wolf wood wool yard]],
  verbs = list [[accept add admire agree allow answer appear arrange arrive ask avoid bake begin believe borrow bounce
    bring build burn buy call carry catch change chase choose climb close collect compare copy count cover cross dance
    decide deliver describe divide draw dream drink drive enjoy enter explain fill find finish float follow forget
    gather give grow guess happen hear help hide hold hope hunt imagine invite join jump keep kick knock know laugh
    learn leave lend lift listen live look lose make measure meet mend mix move need notice obey offer order paint pass
    pay plan play please point pour pray prepare press pretend promise pull push race reach read receive remember
    remind repair reply rest return ride rise roll run save search seem sell send shake share shine shout show sing
    sit sleep smile solve speak spell spend stand start stay stop study swim take talk taste teach tell thank think
    throw touch travel try turn visit wait walk wander wash wave wear whisper win wonder work write]],
}
